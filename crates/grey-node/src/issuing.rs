//! The issuing key as a server has it: the current one, the one that is to follow, and how both come to the other servers.
//!
//! Which key is current says the state ([`grey_core::AuthorityRow`]). A key that is to follow is durable on a majority of the servers before the
//! entry is proposed that makes it current, so that whatever majority is left has it. Where the state names another key than this server
//! has, it issues nothing and fetches that one.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use grey_api::IssuingKeyStatus;
use grey_core::AuthorityRow;
use grey_proof::{Digest, Envelope, SigningKey, VerifyingKey};
use grey_trust::{Authority, CertifiedIssuer, needs_rekey};
use tokio::sync::{Mutex, watch};
use zeroize::Zeroizing;

use crate::clock::wall_ms;
use crate::cluster::Papers;
use crate::control::Role;
use crate::directory::{Directory, ServerPlace};
use crate::error::NodeError;
use crate::plane::{Servers, certificate_id};

/// How often a server without the current key asks the others for it.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How often it is looked whether somebody has to be warned.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How often the log warns that another key is due.
const WARN_EVERY: Duration = Duration::from_secs(24 * 3_600);
/// Milliseconds of a day.
const DAY_MS: u64 = 24 * 3_600 * 1_000;

/// An issuing key, and the digest of its certificate, by which the state names it.
struct Key {
    id: Digest,
    authority: Authority,
}

impl Key {
    fn new(authority: Authority) -> Result<Arc<Key>, NodeError> {
        Ok(Arc::new(Key { id: certificate_id(authority.issuer())?, authority }))
    }
}

#[derive(Default)]
struct Held {
    key: Option<Arc<Key>>,
    /// What may follow: durable here, and not current as far as this server knows.
    next: Option<Arc<Key>>,
    /// The seed of a key that the root was asked to certify. It is let go with leadership, and lost with the process.
    asked: Option<Zeroizing<[u8; 32]>>,
}

/// What the root's key is asked to certify.
pub(crate) struct Asked {
    /// The new issuing key.
    pub(crate) key: VerifyingKey,
    /// The serial number of its certificate.
    pub(crate) serial: u64,
    /// The root's certificate, in DER.
    pub(crate) root: Vec<u8>,
}

/// The issuing keys of a server.
pub(crate) struct Issuing {
    cluster: Digest,
    data_dir: PathBuf,
    root: Vec<u8>,
    own: u64,
    directory: watch::Receiver<Arc<Directory>>,
    held: RwLock<Held>,
    /// Held by whoever writes a key and then has it take its place, so that file and memory say the same; proofs do not wait for the disk.
    files: std::sync::Mutex<()>,
    servers: Arc<Servers>,
    /// Held from before a key is given to other servers until it is known what became of it: two would overwrite each other there.
    pub(crate) following: Mutex<()>,
}

/// A certificate among the proofs, by its digest.
pub(crate) type Kept = (Digest, Vec<u8>);

/// A certificate as the state keeps it.
pub(crate) fn kept(envelope: &Envelope) -> Result<Kept, NodeError> {
    Ok((certificate_id(envelope)?, serde_json::to_vec(envelope).unwrap_or_default()))
}

impl Issuing {
    /// What this server has in its directory.
    pub(crate) fn open(
        papers: &Papers,
        directory: watch::Receiver<Arc<Directory>>,
        servers: Servers,
    ) -> Result<Issuing, NodeError> {
        let key = papers.authority()?.map(Key::new).transpose()?;
        let next = match papers.next_authority() {
            Ok(next) => next.map(Key::new).transpose()?,
            Err(error) => {
                // Should it be current, another server has it too.
                tracing::warn!(%error, "the next issuing key is not usable");
                None
            }
        };
        Ok(Issuing {
            cluster: papers.cluster(),
            data_dir: papers.directory().to_path_buf(),
            root: papers.tls.root().unwrap_or_default().to_vec(),
            own: papers.number(),
            directory,
            held: RwLock::new(Held { key, next, asked: None }),
            files: std::sync::Mutex::default(),
            servers: Arc::new(servers),
            following: Mutex::new(()),
        })
    }

    fn read(&self) -> RwLockReadGuard<'_, Held> {
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Held> {
        self.held.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self) -> MutexGuard<'_, ()> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something that waits for the disk, beside the requests.
    async fn on_disk<T: Send + 'static>(
        self: &Arc<Self>,
        act: impl FnOnce(&Issuing) -> Result<T, NodeError> + Send + 'static,
    ) -> Result<T, NodeError> {
        let issuing = self.clone();
        let done = tokio::task::spawn_blocking(move || act(&issuing)).await;
        done.unwrap_or_else(|error| {
            Err(NodeError::io("write", "an issuing key")(std::io::Error::other(error)))
        })
    }

    fn row(&self) -> AuthorityRow {
        self.directory.borrow().authority.clone().unwrap_or_default()
    }

    /// The key that the state names, as far as this server knows; none where it names none.
    fn named(&self) -> Option<Digest> {
        self.row().current.map(|current| current.issuer)
    }

    fn current_as(&self, named: Option<Digest>) -> Option<Arc<Key>> {
        self.read().key.clone().filter(|key| named.is_none_or(|named| named == key.id))
    }

    /// Does something with the issuing key that a state names, where this server has it.
    pub(crate) fn with<T>(
        &self,
        named: Option<Digest>,
        issue: impl FnOnce(&Authority) -> T,
    ) -> Result<T, &'static str> {
        match self.current_as(named) {
            Some(key) => Ok(issue(&key.authority)),
            None => Err(
                "this server does not have the current issuing key yet, and fetches it; ask again in a moment",
            ),
        }
    }

    /// Whether this server has the current key.
    pub(crate) fn is_complete(&self) -> bool {
        self.current_as(self.named()).is_some()
    }

    /// The current key for another server; nothing where this one has an earlier one only.
    pub(crate) fn encoded(&self) -> Option<Vec<u8>> {
        self.current_as(self.named()).map(|key| key.authority.encode().to_vec())
    }

    /// Certificates of keys that this server has issued with, or may have.
    pub(crate) fn certificate(&self) -> Option<Envelope> {
        self.read().key.as_ref().map(|key| key.authority.issuer().clone())
    }

    /// Makes a key for the root to certify. It stays the same one until that has certified it, and no longer: other servers get to know it then, and
    /// one of them may have left before another attempt.
    pub(crate) fn ask(&self, seed: [u8; 32]) -> Asked {
        let row = self.row();
        let mut held = self.write();
        let known = row.current.map(|current| current.serial);
        let before = held.key.as_ref().map(|key| key.authority.certificate().serial);
        let seed = held.asked.get_or_insert_with(|| Zeroizing::new(seed));
        let key = SigningKey::from_seed(**seed).verifying_key();
        let serial = known.max(before).unwrap_or(1).saturating_add(1);
        Asked { key, serial, root: self.root.clone() }
    }

    /// Takes what the root has certified of the key that it was asked to, and keeps it as the next one.
    pub(crate) async fn certified(self: &Arc<Self>, certified: CertifiedIssuer) -> Result<Next, NodeError> {
        self.on_disk(move |issuing| issuing.take_certified(certified)).await
    }

    fn take_certified(&self, certified: CertifiedIssuer) -> Result<Next, NodeError> {
        let asked = self.read().asked.clone().ok_or(NodeError::NotAsked)?;
        let (root, now_ms) = (self.root.clone(), wall_ms());
        let next = Key::new(Authority::next(&self.cluster, *asked, root, certified, now_ms)?)?;
        self.write().asked = None;
        self.keep_next(next.clone())?;
        Ok(Next(next))
    }

    /// Keeps a key that another server says may follow. It waits for the disk.
    pub(crate) fn keep(&self, bytes: &[u8]) -> Result<(), NodeError> {
        self.keep_next(Key::new(Authority::decode(bytes, &self.cluster)?)?)
    }

    fn keep_next(&self, next: Arc<Key>) -> Result<(), NodeError> {
        let _writing = self.writing();
        Papers::keep_next_authority(&self.data_dir, &next.authority)?;
        self.write().next = Some(next);
        Ok(())
    }

    /// The other servers that may have the key: one on its way out may not.
    fn others(&self) -> Vec<ServerPlace> {
        let directory = self.directory.borrow().clone();
        let servers = directory.servers().filter(|place| place.number != self.own);
        servers.filter(|place| directory.may_have_authority(place.number)).collect()
    }

    /// Whether this server may make the next key: one that is on its way out would know it.
    pub(crate) fn may_make(&self) -> bool {
        self.directory.borrow().may_have_authority(self.own)
    }

    /// Gives the next key to the other servers; returns those that have it durably, this one included.
    pub(crate) async fn spread(&self, next: &Next) -> Vec<u64> {
        let others = self.others();
        let bytes = next.0.authority.encode();
        let given = others.iter().map(|place| async {
            match self.servers.keep_authority(place, bytes.to_vec()).await {
                Ok(()) => Some(place.number),
                Err(error) => {
                    tracing::warn!(server = place.number, %error, "a server did not take the next issuing key");
                    None
                }
            }
        });
        let mut have: Vec<u64> = join_all(given).await.into_iter().flatten().collect();
        have.push(self.own);
        have
    }

    /// Makes the key that the state names the one that this server issues with, where it has it as the next one.
    fn adopt(&self) -> Result<(), NodeError> {
        let _writing = self.writing();
        let Some(named) = self.named() else { return Ok(()) };
        let Some(next) = self.read().next.clone() else { return Ok(()) };
        if next.id != named {
            return self.forget_older();
        }
        Papers::adopt_authority(&self.data_dir)?;
        let mut held = self.write();
        (held.key, held.next, held.asked) = (Some(next), None, None);
        tracing::info!(issuer = %named, "another issuing key is current");
        Ok(())
    }

    /// Removes what was to follow and cannot any more: what follows the current key has a higher number. Files are not written meanwhile.
    fn forget_older(&self) -> Result<(), NodeError> {
        let number = |key: &Key| key.authority.certificate().serial;
        let is_older = {
            let held = self.read();
            let current = held.key.as_ref().filter(|key| self.named().is_none_or(|named| named == key.id));
            current.zip(held.next.as_ref()).is_some_and(|(key, next)| number(next) <= number(key))
        };
        if is_older {
            Papers::drop_next_authority(&self.data_dir)?;
            self.write().next = None;
        }
        Ok(())
    }

    /// Lets go of the key that the root was asked to certify: whoever leads now asks for another one.
    fn ask_no_more(&self) {
        if self.read().asked.is_some() {
            self.write().asked = None;
        }
    }

    /// Asks the others for the current key.
    async fn fetch(self: &Arc<Self>) {
        let known = match self.others() {
            // Until its own state says more, a server that enters knows those of whom it was told.
            none if none.is_empty() => self.servers.places(),
            others => others,
        };
        for place in known.iter().filter(|place| place.number != self.own) {
            let Ok(bytes) = self.servers.authority(place).await else { continue };
            match self.on_disk(move |issuing| issuing.provide(&bytes)).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(server = place.number, %error, "another server's issuing key is not usable");
                }
            }
        }
    }

    /// Takes a key that another server issues with, where it is the current one.
    fn provide(&self, bytes: &[u8]) -> Result<bool, NodeError> {
        let key = Key::new(Authority::decode(bytes, &self.cluster)?)?;
        if self.named().is_some_and(|named| named != key.id) {
            return Ok(false);
        }
        let _writing = self.writing();
        Papers::keep_authority(&self.data_dir, &key.authority)?;
        {
            let mut held = self.write();
            (held.key, held.asked) = (Some(key), None);
        }
        self.forget_older()?;
        Ok(true)
    }

    /// Sees to it that this server has the current key, and that somebody hears of it when another one is due, until the server ends.
    pub(crate) async fn follow(self: Arc<Self>, mut role: watch::Receiver<Role>) {
        let mut directory = self.directory.clone();
        let mut warned: Option<Instant> = None;
        loop {
            directory.mark_unchanged();
            if !role.borrow_and_update().leads {
                self.ask_no_more();
            }
            if let Err(error) = self.on_disk(Issuing::adopt).await {
                tracing::error!(%error, "the issuing key is not kept");
            }
            let is_complete = self.is_complete();
            if !is_complete {
                self.fetch().await;
            }
            let warning = self.status().and_then(|status| status.warning);
            if let Some(warning) = warning.filter(|_| role.borrow().leads)
                && warned.is_none_or(|at| at.elapsed() >= WARN_EVERY)
            {
                tracing::warn!("{warning}");
                warned = Some(Instant::now());
            }
            let wait = if is_complete { LOOK_EVERY } else { ASK_AGAIN };
            let changed = tokio::select! {
                changed = directory.changed() => changed,
                changed = role.changed() => changed,
                () = tokio::time::sleep(wait) => Ok(()),
            };
            if changed.is_err() {
                return;
            }
        }
    }

    /// Waits for a moment until this server issues with the key that the state names.
    pub(crate) async fn settled(&self, longest: Duration) {
        let begun = Instant::now();
        while !self.is_complete() && begun.elapsed() < longest {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The current key as people are told of it; nothing where the state names none and this server has none.
    pub(crate) fn status(&self) -> Option<IssuingKeyStatus> {
        let row = self.row();
        let (id, serial, not_after_ms, since_ms) = match row.current {
            Some(current) => {
                let since_ms = Some(current.since_wall_ms);
                (current.issuer, current.serial, current.not_after_wall_ms, since_ms)
            }
            None => {
                let key = self.read().key.clone()?;
                let certificate = key.authority.certificate();
                (key.id, certificate.serial, certificate.not_after_ms, None)
            }
        };
        let here = self.is_complete();
        let warning = warning(not_after_ms, row.servers_left, wall_ms());
        let servers_left = row.servers_left;
        Some(IssuingKeyStatus {
            issuer: id.to_string(),
            serial,
            not_after_ms,
            since_ms,
            servers_left,
            here,
            warning,
        })
    }
}

/// A key that may follow: kept here.
pub(crate) struct Next(Arc<Key>);

impl Next {
    /// What its certificate says.
    pub(crate) fn authority(&self) -> &Authority {
        &self.0.authority
    }
}

/// Why another key is due, if it is.
fn warning(not_after_ms: u64, servers_left: u64, now_ms: u64) -> Option<String> {
    const DO: &str = "`grey cluster rekey` makes the next one";
    if now_ms >= not_after_ms {
        return Some(format!("the issuing key has expired, and certificates end with it: {DO}"));
    }
    if servers_left > 0 {
        return Some(format!("{servers_left} server(s) that left know the issuing key: {DO}"));
    }
    let days = not_after_ms.saturating_sub(now_ms) / DAY_MS;
    needs_rekey(not_after_ms, now_ms).then(|| format!("the issuing key is good for {days} more day(s): {DO}"))
}

/// Makes a rename durable.
pub(crate) fn sync_directory(directory: &Path) -> Result<(), NodeError> {
    let synced = File::open(directory).and_then(|opened| opened.sync_all());
    synced.map_err(NodeError::io("sync", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_says_why_another_key_is_due_and_what_to_do() {
        let end_ms = 90 * DAY_MS;
        for (servers_left, now_ms, says) in [
            (0, 1, None),
            (0, 59 * DAY_MS, None),
            (0, 60 * DAY_MS, Some("30 more day(s)")),
            (2, 1, Some("2 server(s) that left know the issuing key")),
            (2, end_ms, Some("has expired")),
        ] {
            let warned = warning(end_ms, servers_left, now_ms);
            assert_eq!(warned.is_some(), says.is_some(), "{warned:?}");
            if let (Some(warned), Some(says)) = (warned, says) {
                assert!(warned.contains(says) && warned.contains("grey cluster rekey"), "{warned}");
            }
        }
    }

    const CONFIG: &str = "[server]\nname = \"s1\"\nadvertise = \"127.0.0.1:1\"\n";

    /// A server that was just founded, and its root key.
    fn founded(directory: &Path) -> (Issuing, SigningKey) {
        let mut configuration: crate::config::Configuration = CONFIG.parse().unwrap();
        configuration.set(&["server", "data_dir"], directory.to_str().unwrap());
        crate::cluster::found(&configuration.server().unwrap()).unwrap();
        let papers = Papers::open(directory, grey_core::NodeRole::Server).unwrap().unwrap();
        let trust = grey_trust::Trust::of_cluster(papers.cluster());
        let dialler = crate::plane::Dialler::new(Arc::new(grey_trust::client_config(&trust, None).unwrap()));
        let servers = Servers::new(dialler, watch::channel(Vec::new()).1);
        let issuing = Issuing::open(&papers, watch::channel(Arc::default()).1, servers).unwrap();
        let root_key = crate::identity::secret_in(&directory.join("root.key")).unwrap();
        (issuing, SigningKey::from_seed(root_key))
    }

    #[test]
    fn what_cannot_follow_any_more_is_neither_on_the_disk_nor_in_memory() {
        let directory = tempfile::tempdir().unwrap();
        let (issuing, root_key) = founded(directory.path());
        let file = directory.path().join("authority.next");
        let numbered = |number: u64, seed: u8| {
            let key = SigningKey::from_seed([seed; 32]).verifying_key();
            let certified =
                grey_trust::certify_issuer(&root_key, &issuing.root, &key, number, wall_ms()).unwrap();
            let root = issuing.root.clone();
            Authority::next(&issuing.cluster, [seed; 32], root, certified, wall_ms()).unwrap().encode()
        };
        // Given: a key that may follow. Then: it stays while the current key is of a lower number.
        issuing.keep(&numbered(3, 3)).unwrap();
        assert!(issuing.provide(&numbered(2, 2)).unwrap());
        assert!(file.exists() && issuing.read().next.is_some());
        // When: another one became current in its place.
        let other = numbered(3, 4);
        assert!(issuing.provide(&other).unwrap());
        assert!(!file.exists() && issuing.read().next.is_none());
        assert!(issuing.encoded().unwrap() == *other);
    }

    #[tokio::test]
    async fn what_the_root_was_asked_to_certify_is_let_go_with_leadership() {
        let directory = tempfile::tempdir().unwrap();
        let (issuing, _) = founded(directory.path());
        let (leads, role) = watch::channel(Role { leads: true, leader: 1 });
        let (_told, directory) = watch::channel(Arc::default());
        let issuing = Arc::new(Issuing { directory, ..issuing });
        let following = tokio::spawn(issuing.clone().follow(role));
        let first = issuing.ask([7; 32]).key;
        assert_eq!(issuing.ask([8; 32]).key, first);
        leads.send_replace(Role { leads: false, leader: 2 });
        let let_go = async {
            while issuing.read().asked.is_some() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), let_go).await.unwrap();
        assert_ne!(issuing.ask([8; 32]).key, first);
        following.abort();
    }
}
