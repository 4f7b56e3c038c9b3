//! The only place that prints: results to standard output, talk to standard error, colours on terminals.

use crate::cli::{Color, Global};
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use anstyle::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::error::Error;
use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal as _, Write};
use std::sync::OnceLock;
use std::time::Duration;

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const GREEN: Style = AnsiColor::Green.on_default();
const YELLOW: Style = AnsiColor::Yellow.on_default();
const RED: Style = AnsiColor::Red.on_default().bold();
const CYAN: Style = AnsiColor::Cyan.on_default();

/// Prints a line of talk. Talk that nobody hears any more must not end what is being done: a terminal that was hung up
/// answers with an error.
macro_rules! tell {
    ($($text:tt)*) => {
        let _ = writeln!(anstream::stderr().lock(), $($text)*);
    };
}

/// Prints a line of a result. What is being done goes to its end even where nobody gets the result: that is told last.
macro_rules! show {
    ($($text:tt)*) => {
        keep(writeln!(anstream::stdout().lock(), $($text)*));
    };
}

/// What kept a result from being written first.
static LOST: OnceLock<io::Error> = OnceLock::new();

fn keep(written: io::Result<()>) {
    if let Err(error) = written {
        let _ = LOST.set(error);
    }
}

/// Prints for one command.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    quiet: u8,
    /// Whether standard error can show a line that changes.
    live: bool,
}

/// How a line of a report is marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// All is well.
    Good,
    /// Somebody should look.
    Warn,
    /// It does not work.
    Bad,
    /// Neither.
    Plain,
}

impl Output {
    /// Prints as the global options say.
    pub(crate) fn new(global: &Global, interactive: bool) -> Self {
        let choice = match global.color {
            Color::Auto => anstream::ColorChoice::Auto,
            Color::Always => anstream::ColorChoice::Always,
            Color::Never => anstream::ColorChoice::Never,
        };
        choice.write_global();
        Self { quiet: global.quiet, live: interactive && global.quiet == 0 }
    }

    /// A result: to standard output.
    pub(crate) fn result(self, text: impl Display) {
        show!("{text}");
    }

    /// A result that ends with its own newline, or needs none.
    pub(crate) fn raw(self, text: impl Display) {
        keep(write!(anstream::stdout().lock(), "{text}"));
    }

    /// How the command ends that would end with `code`: badly, where its results could not be written. Who closes the pipe
    /// has read enough.
    pub(crate) fn delivered(self, code: ExitCode) -> ExitCode {
        keep(io::stdout().flush());
        match LOST.get() {
            Some(error) if error.kind() != ErrorKind::BrokenPipe && code == ExitCode::Success => {
                tell!("{RED}error:{RED:#} it is done, but the result could not be written: {error}");
                ExitCode::Failure
            }
            _ => code,
        }
    }

    /// Where results of any length are written, as bytes. On a terminal, control characters are replaced: what is
    /// exported holds words of strangers, and a terminal obeys them.
    pub(crate) fn stream(self) -> impl Write {
        let stdout = std::io::stdout();
        Stream { tame: stdout.is_terminal(), inner: stdout }
    }

    /// A result as pretty JSON.
    pub(crate) fn json(self, value: &impl Serialize) {
        show!("{}", serde_json::to_string_pretty(value).unwrap_or_default());
    }

    /// A named value of a report: `Current version: 1.2.3`.
    pub(crate) fn field(self, name: &str, value: impl Display) {
        show!("{BOLD}{name}:{BOLD:#} {value}");
    }

    /// A line of a report, marked.
    pub(crate) fn marked(self, tone: Tone, text: impl Display) {
        let (style, word) = match tone {
            Tone::Good => (GREEN, "ok"),
            Tone::Warn => (YELLOW, "warn"),
            Tone::Bad => (RED, "fail"),
            Tone::Plain => (Style::new(), ""),
        };
        let gap = 6 - word.len();
        show!("{style}{word}{style:#}{:gap$}{text}", "");
    }

    /// Talk: what is being done.
    pub(crate) fn say(self, text: impl Display) {
        if self.quiet == 0 {
            tell!("{text}");
        }
    }

    /// Talk: something that somebody should know.
    pub(crate) fn warn(self, text: impl Display) {
        if self.quiet < 2 {
            tell!("{YELLOW}warning:{YELLOW:#} {text}");
        }
    }

    /// Talk: what can be done.
    pub(crate) fn hint(self, text: impl Display) {
        if self.quiet == 0 {
            tell!("{CYAN}hint:{CYAN:#} {text}");
        }
    }

    /// A command's failure: what, because of what, and the way out.
    pub(crate) fn error(self, error: &CommandError) {
        tell!("{RED}error:{RED:#} {error}");
        let mut said = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Transparent wrappers say the same twice.
            if !said.contains(&text) {
                tell!("  {DIM}caused by:{DIM:#} {text}");
                said = text;
            }
            cause = error.source();
        }
        if let Some(hint) = error.hint() {
            self.hint(hint);
        }
    }

    /// Asks a yes-or-no question on the terminal; anything but yes is no.
    pub(crate) fn ask(self, question: &str) -> bool {
        let _ = write!(anstream::stderr().lock(), "{question} [y/N] ");
        let _ = std::io::stderr().flush();
        let mut answer = String::new();
        let _ = std::io::stdin().read_line(&mut answer);
        matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
    }

    /// A line that shows how far something is; without a terminal nothing, the steps are told anyway.
    pub(crate) fn bar(self) -> Bar {
        let target = if self.live { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Bar { bar: ProgressBar::with_draw_target(None, target) }
    }
}

/// Standard output, as bytes.
struct Stream {
    inner: std::io::Stdout,
    tame: bool,
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if !self.tame {
            return self.inner.write(bytes);
        }
        let tame: Vec<u8> = bytes.iter().map(|byte| if is_tame(*byte) { *byte } else { b'?' }).collect();
        self.inner.write(&tame)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

/// Whether a terminal only shows this byte. The two-byte forms of the C1 controls (U+0080 to U+009F) begin with 0xC2 like
/// other characters; terminals in UTF-8 mode ignore them or show them.
fn is_tame(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\t') || (byte >= 0x20 && byte != 0x7f)
}

/// A line that changes.
pub(crate) struct Bar {
    bar: ProgressBar,
}

impl Bar {
    /// Shows bytes.
    pub(crate) fn bytes(&self, done: u64, total: u64) {
        let style = ProgressStyle::with_template("  {bar:30} {bytes} of {total_bytes} ({bytes_per_sec})");
        self.bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        self.bar.set_length(total);
        self.bar.set_position(done);
    }

    /// Shows a count of things, `what` they are: `rows`. Without a total, the count alone.
    pub(crate) fn count(&self, done: u64, total: Option<u64>, what: &str) {
        let template = match total {
            Some(_) => format!("  {{bar:30}} {{human_pos}} of {{human_len}} {what} (about {{eta}} left)"),
            None => format!("  {{spinner}} {{human_pos}} {what}"),
        };
        self.bar.set_style(ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        self.bar.set_length(total.unwrap_or(0));
        self.bar.set_position(done);
    }

    /// Shows a changing text with a sign of life.
    pub(crate) fn text(&self, text: String) {
        let style = ProgressStyle::with_template("  {spinner} {msg}");
        self.bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        self.bar.set_message(text);
        self.bar.tick();
    }

    /// Takes the line away.
    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
        self.bar.reset();
    }
}

/// A duration in words, for people.
pub(crate) fn human(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..=59 => format!("{:.1} s", duration.as_secs_f64()),
        60..=3599 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..=86_399 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_text_and_no_orders() {
        let shown: Vec<u8> = "a\tb\n\u{1b}[2Jü\r\u{7f}".bytes().filter(|byte| is_tame(*byte)).collect();
        assert_eq!(String::from_utf8(shown).unwrap(), "a\tb\n[2Jü");
    }
}
