//! What a process did to the disk, call by call: read from its trace.

use super::disk::{Ino, Tree};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One thing that was done. An entry is a name in a folder.
#[derive(Debug, Clone)]
pub enum Op {
    /// Entries were set or taken away, all or none of them: more than one is a rename.
    Entries(Vec<(Ino, String, Option<Ino>)>),
    /// Bytes were written.
    Write(Ino, usize, Arc<[u8]>),
    /// The file was cut or stretched.
    Truncate(Ino, usize),
    /// The mode was set.
    Mode(Ino, u32),
    /// A file or a folder was synced.
    Sync(Ino),
}

/// Bytes that were written, where the trace has only the beginning of them: by the end of the file's name.
pub type Sources = Vec<(&'static str, Arc<[u8]>)>;

/// A reader of one trace. It follows names in `tree`, which is at the end what the disk would hold if nothing were lost.
pub struct Recorder<'a> {
    root: PathBuf,
    tree: &'a mut Tree,
    open: HashMap<u32, (Ino, usize)>,
    sources: &'a Sources,
    ops: Vec<Op>,
}

impl<'a> Recorder<'a> {
    /// A reader for a process whose installation is at `root`.
    pub fn new(root: &Path, tree: &'a mut Tree, sources: &'a Sources) -> Self {
        Self { root: root.to_owned(), tree, open: HashMap::new(), sources, ops: Vec::new() }
    }

    /// Reads the whole trace.
    ///
    /// # Panics
    /// When a call is not understood: a model that leaves something out proves nothing.
    pub fn read(mut self, trace: &str) -> Vec<Op> {
        for line in trace.lines() {
            let Some((name, rest)) = line.split_once('(') else { continue };
            // `) = ` may be in what was written, too: the last one ends the arguments.
            let Some(end) = rest.rfind(") = ").or_else(|| rest.rfind(") ").filter(|_| rest.contains(" = "))) else {
                continue;
            };
            let result = rest[end..].rsplit("= ").next().unwrap_or("-1");
            if result.starts_with('-') || result.starts_with('?') {
                continue;
            }
            let arguments = arguments(&rest[..end]);
            self.call(name, &arguments, result);
        }
        self.ops
    }

    fn call(&mut self, name: &str, arguments: &[String], result: &str) {
        match name {
            "open" => self.opened(&plain(&arguments[0]), &arguments[1], arguments.get(2), result),
            "openat" => self.opened(&at(&arguments[0], &arguments[1]), &arguments[2], arguments.get(3), result),
            "write" => self.wrote(&arguments[0], &arguments[1], result),
            "copy_file_range" => self.copied(&arguments[0], &arguments[2], result),
            "sendfile" => self.copied(&arguments[1], &arguments[0], result),
            "fsync" | "fdatasync" => self.synced(&arguments[0]),
            "ftruncate" => {
                if let Some((ino, _)) = self.descriptor(&arguments[0]) {
                    let length = arguments[1].parse().unwrap();
                    self.ops.push(Op::Truncate(ino, length));
                    self.tree.truncate(ino, length);
                }
            }
            "fchmod" => {
                if let Some((ino, _)) = self.descriptor(&arguments[0]) {
                    self.mode(ino, &arguments[1]);
                }
            }
            "chmod" => self.mode_of(&plain(&arguments[0]), &arguments[1]),
            "fchmodat" => self.mode_of(&at(&arguments[0], &arguments[1]), &arguments[2]),
            "rename" => self.renamed(&plain(&arguments[0]), &plain(&arguments[1])),
            "renameat" | "renameat2" => {
                self.renamed(&at(&arguments[0], &arguments[1]), &at(&arguments[2], &arguments[3]));
            }
            "symlink" => self.linked(&arguments[0], &plain(&arguments[1])),
            "symlinkat" => self.linked(&arguments[0], &at(&arguments[1], &arguments[2])),
            "unlink" | "rmdir" => self.removed(&plain(&arguments[0])),
            "unlinkat" => self.removed(&at(&arguments[0], &arguments[1])),
            "mkdir" => self.made(&plain(&arguments[0]), &arguments[1]),
            "mkdirat" => self.made(&at(&arguments[0], &arguments[1]), &arguments[2]),
            // Owners are the caller's in a prefix; locks and sockets leave nothing on the disk.
            "chown" | "fchown" | "lchown" | "fchownat" | "flock" | "socket" | "connect" | "sendto" | "recvfrom" => {}
            other => {
                let ours = arguments.iter().any(|argument| argument.contains(&*self.root.to_string_lossy()));
                assert!(!ours, "{other} of {arguments:?} is not understood");
            }
        }
    }

    /// The place below the root, if it is one that a power cut leaves: what is in `run` is in memory, and a log is nobody's
    /// state. What the fetcher left is believed by nobody and is another process' doing.
    fn inside<'p>(&self, path: &'p Path) -> Option<&'p Path> {
        let inside = path.strip_prefix(&self.root).ok()?;
        let elsewhere = ["run", "var/log", "var/lib/picket-fetch"];
        (!elsewhere.iter().any(|folder| inside.starts_with(folder))).then_some(inside)
    }

    /// The folder and the name of a place.
    fn entry(&self, path: &Path) -> Option<(Ino, String)> {
        let inside = self.inside(path)?;
        let folder =
            self.tree.find(inside.parent()?).unwrap_or_else(|| panic!("nothing is known of {}", path.display()));
        Some((folder, inside.file_name()?.to_str()?.to_owned()))
    }

    fn set(&mut self, entries: Vec<(Ino, String, Option<Ino>)>) {
        self.tree.set(&entries);
        self.ops.push(Op::Entries(entries));
    }

    fn opened(&mut self, path: &Path, flags: &str, mode: Option<&String>, result: &str) {
        let Some(descriptor) = number(result) else { return };
        self.open.remove(&descriptor);
        let Some(inside) = self.inside(path).map(Path::to_owned) else { return };
        let known = self.tree.find(&inside);
        let ino = match known {
            Some(ino) => ino,
            None if flags.contains("O_CREAT") => {
                let Some((folder, name)) = self.entry(path) else { return };
                let mode = mode.map_or(0o644, |mode| octal(mode));
                let ino = self.tree.file(mode & !0o022);
                self.set(vec![(folder, name, Some(ino))]);
                ino
            }
            // A lock's file that was made by somebody else since: nothing of it matters.
            None => return,
        };
        if flags.contains("O_TRUNC") {
            self.ops.push(Op::Truncate(ino, 0));
            self.tree.truncate(ino, 0);
        }
        let offset = if flags.contains("O_APPEND") { self.tree.length(ino) } else { 0 };
        self.open.insert(descriptor, (ino, offset));
    }

    /// The file that a descriptor is of. Its number may be a pipe's by now, and the file may have been removed.
    fn descriptor(&self, argument: &str) -> Option<(Ino, usize)> {
        let (ino, offset) = self.open.get(&number(argument)?).copied()?;
        let path = PathBuf::from(between(argument));
        (self.tree.find(self.inside(&path)?) == Some(ino)).then_some((ino, offset))
    }

    fn wrote(&mut self, descriptor: &str, data: &str, result: &str) {
        let Some((ino, offset)) = self.descriptor(descriptor) else { return };
        let length: usize = result.trim().parse().unwrap();
        let name = between(descriptor);
        let bytes: Arc<[u8]> = if data.ends_with("...") {
            let seen = text(data.trim_end_matches("..."));
            let source = self.sources.iter().find(|(end, _)| name.ends_with(end));
            let (_, source) = source.unwrap_or_else(|| panic!("a long write to {name} is of unknown bytes"));
            let bytes = &source[offset..offset + length];
            assert!(bytes.starts_with(&seen), "what is written to {name} is not what was expected");
            bytes.into()
        } else {
            let bytes = text(data);
            bytes[..length].into()
        };
        self.write(number(descriptor), ino, offset, bytes);
    }

    fn write(&mut self, descriptor: Option<u32>, ino: Ino, offset: usize, bytes: Arc<[u8]>) {
        if let Some(open) = descriptor.and_then(|descriptor| self.open.get_mut(&descriptor)) {
            open.1 = offset + bytes.len();
        }
        self.tree.write(ino, offset, &bytes);
        self.ops.push(Op::Write(ino, offset, bytes));
    }

    fn copied(&mut self, from: &str, to: &str, result: &str) {
        let Some((ino, offset)) = self.descriptor(to) else { return };
        let length: usize = result.trim().parse().unwrap();
        let source = std::fs::read(between(from)).unwrap();
        self.write(number(to), ino, offset, source[offset..offset + length].into());
    }

    fn synced(&mut self, descriptor: &str) {
        if let Some((ino, _)) = self.descriptor(descriptor) {
            self.ops.push(Op::Sync(ino));
        }
    }

    fn mode_of(&mut self, path: &Path, mode: &str) {
        if let Some(ino) = self.inside(path).and_then(|inside| self.tree.find(inside)) {
            self.mode(ino, mode);
        }
    }

    fn mode(&mut self, ino: Ino, mode: &str) {
        let mode = octal(mode);
        self.tree.mode(ino, mode);
        self.ops.push(Op::Mode(ino, mode));
    }

    fn renamed(&mut self, from: &Path, to: &Path) {
        let (Some((from, old)), Some((to, new))) = (self.entry(from), self.entry(to)) else { return };
        let ino = self.tree.child(from, &old).expect("something unknown is renamed");
        self.set(vec![(to, new, Some(ino)), (from, old, None)]);
    }

    fn linked(&mut self, target: &str, path: &Path) {
        let Some((folder, name)) = self.entry(path) else { return };
        let ino = self.tree.link(&String::from_utf8(text(target)).unwrap());
        self.set(vec![(folder, name, Some(ino))]);
    }

    fn removed(&mut self, path: &Path) {
        let Some((folder, name)) = self.entry(path) else { return };
        self.set(vec![(folder, name, None)]);
    }

    fn made(&mut self, path: &Path, mode: &str) {
        let Some((folder, name)) = self.entry(path) else { return };
        let ino = self.tree.folder(octal(mode) & !0o022);
        self.set(vec![(folder, name, Some(ino))]);
    }
}

fn number(text: &str) -> Option<u32> {
    let digits: String = text.trim().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

fn octal(text: &str) -> u32 {
    let digits = text.trim().trim_start_matches(|c: char| !c.is_ascii_digit());
    u32::from_str_radix(digits, 8).unwrap_or(0o644)
}

/// What `-y` says of a descriptor.
fn between(descriptor: &str) -> String {
    let inside =
        descriptor.split_once('<').and_then(|(_, rest)| rest.rsplit_once('>')).map_or("", |(inside, _)| inside);
    String::from_utf8_lossy(&text(&format!("\"{inside}\""))).into_owned()
}

fn plain(argument: &str) -> PathBuf {
    PathBuf::from(String::from_utf8_lossy(&text(argument)).into_owned())
}

/// A path that may be relative to a descriptor.
fn at(folder: &str, argument: &str) -> PathBuf {
    Path::new(&between(folder)).join(plain(argument))
}

/// Splits arguments at commas outside of strings and descriptors' paths.
fn arguments(text: &str) -> Vec<String> {
    let (mut parts, mut quoted, mut escaped) = (vec![String::new()], false, false);
    for c in text.chars() {
        match c {
            '"' if !escaped => quoted = !quoted,
            ',' if !quoted => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        escaped = c == '\\' && !escaped;
        if let Some(part) = parts.last_mut()
            && !(part.is_empty() && c == ' ')
        {
            part.push(c);
        }
    }
    parts
}

/// The bytes of a string as strace prints it (`strace(1)`, `-x`): C's escapes.
fn text(quoted: &str) -> Vec<u8> {
    let inner = quoted.trim().trim_start_matches('"');
    let inner = inner.strip_suffix('"').unwrap_or(inner);
    let source = inner.as_bytes();
    let (mut bytes, mut i) = (Vec::with_capacity(source.len()), 0);
    while i < source.len() {
        if source[i] != b'\\' || i + 1 >= source.len() {
            bytes.push(source[i]);
            i += 1;
            continue;
        }
        i += 1;
        let simple = match source[i] {
            b'n' => Some(b'\n'),
            b't' => Some(b'\t'),
            b'r' => Some(b'\r'),
            b'v' => Some(0x0b),
            b'f' => Some(0x0c),
            b'x' => None,
            c if (b'0'..=b'7').contains(&c) => None,
            c => Some(c),
        };
        if let Some(byte) = simple {
            bytes.push(byte);
            i += 1;
            continue;
        }
        let (radix, start, most) = if source[i] == b'x' { (16, i + 1, 2) } else { (8, i, 3) };
        let is_digit = |c: &&u8| (**c as char).is_digit(radix);
        let length = source[start..].iter().take(most).take_while(is_digit).count();
        let digits = std::str::from_utf8(&source[start..start + length]).unwrap();
        bytes.push(u8::try_from(u32::from_str_radix(digits, radix).unwrap()).unwrap());
        i = start + length;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_read_as_they_were_written() {
        assert_eq!(text(r#""a\n\"\\\0\33\1777\x7f""#), b"a\n\"\\\0\x1b\x7f7\x7f");
        assert_eq!(arguments(r#"7</a,b>, "x, \" y", 3"#).len(), 4, "a comma in a path is not ours to make");
        assert_eq!(arguments(r#"7</a>, "x, \" y", 3"#), ["7</a>", r#""x, \" y""#, "3"]);
    }

    #[test]
    fn a_file_that_is_replaced_is_four_ops_and_a_sync_of_each() {
        let mut tree = Tree::default();
        let sources = Sources::new();
        let trace = "openat(AT_FDCWD</>, \"/p/.a.new\", O_WRONLY|O_CREAT|O_EXCL|O_CLOEXEC, 0600) = 7</p/.a.new>\n\
            fchmod(7</p/.a.new>, 0640) = 0\n\
            write(7</p/.a.new>, \"{\\n) = 1}\", 8) = 8\n\
            fsync(7</p/.a.new>)                     = 0\n\
            rename(\"/p/.a.new\", \"/p/a\") = 0\n\
            openat(AT_FDCWD</>, \"/p\", O_RDONLY|O_CLOEXEC) = 7</p>\n\
            fsync(7</p>) = 0\n";
        let ops = Recorder::new(Path::new("/p"), &mut tree, &sources).read(trace);
        assert_eq!(ops.len(), 6, "{ops:?}");
        assert!(matches!(&ops[2], Op::Write(_, 0, bytes) if **bytes == *b"{\n) = 1}"));
        assert!(matches!(&ops[4], Op::Entries(entries) if entries.len() == 2));
        assert!(tree.find(Path::new("a")).is_some() && tree.find(Path::new(".a.new")).is_none());
    }
}
