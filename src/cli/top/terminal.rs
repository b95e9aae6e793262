//! A terminal that shows a live view, and is as it was afterwards: whether the view ends, is ended by a signal, or panics.

use std::io::{self, IsTerminal, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr,
};
use tokio::sync::mpsc;

use super::screen::Size;

/// The other screen, and no cursor; then back.
const ENTER: &str = "\u{1b}[?1049h\u{1b}[?25l";
const LEAVE: &str = "\u{1b}[?25h\u{1b}[?1049l";
/// To the upper left; what is left of a line; what is left of the screen.
const HOME: &str = "\u{1b}[H";
const REST_OF_LINE: &str = "\u{1b}[K";
const REST_OF_SCREEN: &str = "\u{1b}[J";
/// What a terminal is taken for that does not say its size.
const USUAL_SIZE: Size = Size { columns: 80, lines: 24 };
/// Ctrl-C and Ctrl-D as bytes: in this mode they are keys like others.
const INTERRUPT: u8 = 3;
const END_OF_INPUT: u8 = 4;

fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// How a terminal was before.
struct Before {
    /// How its input was; nothing where the input is no terminal.
    input: Option<Termios>,
    is_back: AtomicBool,
}

impl Before {
    /// Puts the terminal back, once: a second time would move the cursor over what was written since. What cannot be put back is
    /// nobody's to see.
    fn restore(&self) {
        if self.is_back.swap(true, Ordering::Relaxed) {
            return;
        }
        drop(write(LEAVE));
        if let Some(input) = &self.input {
            let _ = tcsetattr(io::stdin(), OptionalActions::Flush, input);
        }
    }
}

/// The terminal while it shows a view.
pub struct Terminal {
    before: Arc<Before>,
}

impl Terminal {
    /// Takes the terminal over.
    pub fn enter() -> io::Result<Terminal> {
        let input = if io::stdin().is_terminal() { Some(tcgetattr(io::stdin())?) } else { None };
        let before = Arc::new(Before { input, is_back: AtomicBool::new(false) });
        // What a panic says comes after the screen is back, so that it can be read.
        let (tell, at_a_panic) = (std::panic::take_hook(), before.clone());
        std::panic::set_hook(Box::new(move |info| {
            at_a_panic.restore();
            tell(info);
        }));
        // From here on everything is put back, also after an error.
        let terminal = Terminal { before };
        if let Some(input) = &terminal.before.input {
            let mut keys = input.clone();
            keys.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG);
            keys.special_codes[SpecialCodeIndex::VMIN] = 1;
            keys.special_codes[SpecialCodeIndex::VTIME] = 0;
            tcsetattr(io::stdin(), OptionalActions::Flush, &keys)?;
        }
        write(ENTER)?;
        Ok(terminal)
    }

    /// Its size now.
    pub fn size(&self) -> Size {
        match tcgetwinsize(io::stdout()) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
                Size { columns: size.ws_col.into(), lines: size.ws_row.into() }
            }
            _ => USUAL_SIZE,
        }
    }

    /// Shows text in the place of what was there.
    pub fn show(&self, text: &str) -> io::Result<()> {
        // A line feed behind the last line would move the first one out.
        let lines: Vec<String> = text.lines().map(|line| format!("{line}{REST_OF_LINE}")).collect();
        write(&format!("{HOME}{}{REST_OF_SCREEN}", lines.join("\r\n")))
    }

    /// What is typed from now on.
    pub fn keys(&self) -> Keys {
        let (sender, typed) = mpsc::channel(16);
        if self.before.input.is_some() {
            // It waits for a key until the process ends.
            std::thread::spawn(move || {
                for byte in io::stdin().lock().bytes() {
                    let Ok(byte) = byte else { return };
                    if sender.blocking_send(byte).is_err() {
                        return;
                    }
                }
            });
        }
        Keys(typed)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.before.restore();
    }
}

/// Keys that are typed.
pub struct Keys(mpsc::Receiver<u8>);

impl Keys {
    /// Returns when one is typed that ends the view; never where nothing can be typed.
    pub async fn end(&mut self) {
        loop {
            match self.0.recv().await {
                Some(b'q' | b'Q' | INTERRUPT | END_OF_INPUT) => return,
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    }
}
