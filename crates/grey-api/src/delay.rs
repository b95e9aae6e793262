//! Answers that do not come: whoever waits for one at a terminal is told whom it waits for, and what was said last.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// For how long nothing is said of a request, beyond the wait that it asks for itself.
const QUIET: Duration = Duration::from_secs(2);
/// How often it is said again: a person sees that time goes by.
const AGAIN: Duration = Duration::from_secs(1);

/// An answer that does not come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delay {
    /// Who is asked; of several nodes the one that said something last, where one did.
    pub address: String,
    /// For how long it is waited for.
    pub waited: Duration,
    /// What the last attempt came to; nothing while the first one is under way.
    pub said: Option<String>,
    /// For how long it is tried, from the beginning on; nothing where the first attempt is the only one.
    pub tried_for: Option<Duration>,
}

/// Is told of answers that do not come, and with `None` once nobody waits for one any more.
#[derive(Clone)]
pub struct Observer(Arc<dyn Fn(Option<&Delay>) + Send + Sync>);

impl Observer {
    /// One that does this. It is called by whoever waits, so it must not take long.
    pub fn new(tell: impl Fn(Option<&Delay>) + Send + Sync + 'static) -> Observer {
        Observer(Arc::new(tell))
    }

    /// Waits for an answer; from a time on tells every second that it does not come, as `delay` puts it. Where that has nothing to say,
    /// nothing is told.
    pub(crate) async fn watch<T>(
        &self,
        quiet: Duration,
        delay: impl Fn(Duration) -> Option<Delay>,
        answer: impl Future<Output = T>,
    ) -> T {
        let (begun, mut answer) = (Instant::now(), pin!(answer));
        let mut told = Told { observer: self, anything: false };
        let mut next = begun + quiet;
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return answer,
                () = tokio::time::sleep_until(next.into()) => {
                    if let Some(delay) = delay(begun.elapsed()) {
                        (self.0)(Some(&delay));
                        told.anything = true;
                    }
                    next = Instant::now() + AGAIN;
                }
            }
        }
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Observer")
    }
}

/// Takes back what was told, also where nobody waits to the end.
struct Told<'a> {
    observer: &'a Observer,
    anything: bool,
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if self.anything {
            (self.observer.0)(None);
        }
    }
}

/// For how long nothing is said of a request for a path: some ask the node to wait.
pub(crate) fn quiet(path: &str) -> Duration {
    let query = path.split_once('?').map_or("", |(_, query)| query);
    let waits_ms =
        query.split('&').find_map(|parameter| parameter.strip_prefix("wait_ms=")?.parse::<u64>().ok());
    QUIET.saturating_add(Duration::from_millis(waits_ms.unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::sync::Mutex;

    type Heard = Arc<Mutex<Vec<Option<Duration>>>>;

    fn listening() -> (Observer, Heard) {
        let heard: Heard = Arc::default();
        let keeps = heard.clone();
        let tell = move |delay: Option<&Delay>| keeps.lock().unwrap().push(delay.map(|delay| delay.waited));
        (Observer::new(tell), heard)
    }

    fn delay(waited: Duration) -> Option<Delay> {
        Some(Delay { address: String::new(), waited, said: None, tried_for: None })
    }

    #[tokio::test]
    async fn of_an_answer_that_comes_in_time_nothing_is_told() {
        let (observer, heard) = listening();
        assert_eq!(observer.watch(QUIET, delay, async { 7 }).await, 7);
        assert!(heard.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn what_was_told_is_taken_back_when_the_answer_comes_and_when_nobody_waits_any_more() {
        let quiet = Duration::from_millis(20);
        for gives_up in [false, true] {
            let (observer, heard) = listening();
            let (answers, answer) = tokio::sync::oneshot::channel();
            let told = heard.clone();
            let mut waiting = Box::pin(observer.watch(quiet, delay, answer));
            tokio::select! {
                _ = &mut waiting => panic!("nobody answered"),
                () = async { while told.lock().unwrap().is_empty() { tokio::task::yield_now().await; } } => {}
            }
            if !gives_up {
                answers.send(()).unwrap();
                waiting.as_mut().await.unwrap();
            }
            drop(waiting);
            let heard = heard.lock().unwrap();
            assert!(heard.first().unwrap().is_some_and(|waited| waited >= quiet), "{heard:?}");
            assert_eq!((heard.last(), heard.iter().flatten().count()), (Some(&None), heard.len() - 1));
        }
    }

    #[test]
    fn a_request_that_asks_the_node_to_wait_is_waited_for_in_silence() {
        for (path, seconds) in [
            ("/v1/jobs", 2),
            ("/v1/jobs/j1?wait_ms=30000", 32),
            ("/v1/jobs/j1?limit=1&wait_ms=500", 2),
            ("/v1/jobs/j1?wait_ms=nonsense", 2),
            ("/v1/wait_ms=9000", 2),
        ] {
            assert_eq!(quiet(path).as_secs(), seconds, "{path}");
        }
        assert_eq!(quiet("/v1/jobs/j1?wait_ms=18446744073709551615").as_secs(), u64::MAX / 1_000 + 2);
    }
}
