//! A model of a disk: what is on it, what of it is safe, and what a power cut may leave.
//!
//! The rules are POSIX', not ext4's, which promises more: the bytes, the length and the mode of a file are safe once the file
//! was synced after they were set; a name in a folder is safe once the folder was. A rename is one thing: a power cut keeps
//! or loses it whole (every journalling file system does that), but once one of its two folders was synced, the other half
//! may still be lost. Whatever is not safe may be lost or kept in any combination, whatever came first; bytes that are not
//! safe may also be kept in part, or as zeros of the right length (XFS and ext4 with delayed allocation).

use super::record::Op;
use crate::run::Dice;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::hash::{Hash, Hasher};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The number of a file, folder or link.
pub type Ino = usize;

/// The bytes of a file: as they were before everything, or in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Bytes {
    Original(PathBuf, usize),
    Made(Arc<Vec<u8>>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    File { bytes: Bytes, mode: u32 },
    Folder { entries: BTreeMap<String, Ino>, mode: u32 },
    Link(String),
}

/// What is on a disk. The first folder is its root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    nodes: HashMap<Ino, Node>,
    next: Ino,
}

impl Default for Tree {
    fn default() -> Self {
        let root = Node::Folder { entries: BTreeMap::new(), mode: 0o755 };
        Self { nodes: HashMap::from([(0, root)]), next: 1 }
    }
}

impl Tree {
    /// What is in `folder` now; `run` and logs are left out.
    pub fn of(folder: &Path) -> Self {
        let mut tree = Self::default();
        tree.load(folder, 0, folder);
        tree
    }

    fn load(&mut self, folder: &Path, ino: Ino, top: &Path) {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            let inside = path.strip_prefix(top).unwrap();
            if inside == Path::new("run") || inside == Path::new("var/log") {
                // The folders themselves are there at each start.
                let made = self.folder(0o755);
                self.set(&[(ino, entry.file_name().into_string().unwrap(), Some(made))]);
                continue;
            }
            let mode = entry.metadata().unwrap().permissions().mode() & 0o7777;
            let child = if kind.is_dir() {
                self.folder(mode)
            } else if kind.is_symlink() {
                self.link(fs::read_link(&path).unwrap().to_str().unwrap())
            } else {
                let length = usize::try_from(entry.metadata().unwrap().len()).unwrap();
                self.add(Node::File { bytes: Bytes::Original(path.clone(), length), mode })
            };
            self.set(&[(ino, entry.file_name().into_string().unwrap(), Some(child))]);
            if kind.is_dir() {
                self.load(&path, child, top);
            }
        }
    }

    fn add(&mut self, node: Node) -> Ino {
        self.nodes.insert(self.next, node);
        self.next += 1;
        self.next - 1
    }

    /// A new, empty file.
    pub fn file(&mut self, mode: u32) -> Ino {
        self.add(Node::File { bytes: Bytes::Made(Arc::default()), mode })
    }

    /// A new, empty folder.
    pub fn folder(&mut self, mode: u32) -> Ino {
        self.add(Node::Folder { entries: BTreeMap::new(), mode })
    }

    /// A new link.
    pub fn link(&mut self, target: &str) -> Ino {
        self.add(Node::Link(target.to_owned()))
    }

    /// What is at `path`.
    pub fn find(&self, path: &Path) -> Option<Ino> {
        path.components().try_fold(0, |ino, part| self.child(ino, part.as_os_str().to_str()?))
    }

    /// What a folder has under `name`.
    pub fn child(&self, folder: Ino, name: &str) -> Option<Ino> {
        match &self.nodes[&folder] {
            Node::Folder { entries, .. } => entries.get(name).copied(),
            _ => None,
        }
    }

    /// Sets entries.
    pub fn set(&mut self, entries: &[(Ino, String, Option<Ino>)]) {
        for (folder, name, ino) in entries {
            let Some(Node::Folder { entries, .. }) = self.nodes.get_mut(folder) else {
                panic!("{name} is in no folder")
            };
            match ino {
                Some(ino) => entries.insert(name.clone(), *ino),
                None => entries.remove(name),
            };
        }
    }

    fn made(&mut self, ino: Ino) -> &mut Vec<u8> {
        let Some(Node::File { bytes, .. }) = self.nodes.get_mut(&ino) else { panic!("{ino} is no file") };
        if let Bytes::Original(path, _) = bytes {
            *bytes = Bytes::Made(Arc::new(fs::read(path).unwrap()));
        }
        let Bytes::Made(made) = bytes else { unreachable!() };
        Arc::make_mut(made)
    }

    /// Writes bytes.
    pub fn write(&mut self, ino: Ino, offset: usize, bytes: &[u8]) {
        let made = self.made(ino);
        made.resize(made.len().max(offset + bytes.len()), 0);
        made[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// Cuts or stretches a file.
    pub fn truncate(&mut self, ino: Ino, length: usize) {
        self.made(ino).resize(length, 0);
    }

    /// The length of a file.
    pub fn length(&self, ino: Ino) -> usize {
        match &self.nodes[&ino] {
            Node::File { bytes: Bytes::Original(_, length), .. } => *length,
            Node::File { bytes: Bytes::Made(made), .. } => made.len(),
            _ => 0,
        }
    }

    /// Sets a mode.
    pub fn mode(&mut self, ino: Ino, wanted: u32) {
        if let Some(Node::File { mode, .. } | Node::Folder { mode, .. }) = self.nodes.get_mut(&ino) {
            *mode = wanted;
        }
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Entries(entries) => self.set(entries),
            Op::Write(ino, offset, bytes) => self.write(*ino, *offset, bytes),
            Op::Truncate(ino, length) => self.truncate(*ino, *length),
            Op::Mode(ino, mode) => self.mode(*ino, *mode),
            Op::Sync(_) => {}
        }
    }

    /// A number for everything that can be reached from the root.
    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash_from(0, &mut hasher);
        hasher.finish()
    }

    fn hash_from(&self, ino: Ino, hasher: &mut DefaultHasher) {
        match &self.nodes[&ino] {
            Node::File { bytes: Bytes::Original(path, _), mode } => (1, path, mode).hash(hasher),
            // What begins and ends alike and is as long is alike here: bytes are the whole, half of them, or zeros.
            Node::File { bytes: Bytes::Made(made), mode } if made.len() > 100_000 => {
                (2, made.len(), &made[..50_000], &made[made.len() - 50_000..], mode).hash(hasher);
            }
            Node::File { bytes: Bytes::Made(made), mode } => (2, made, mode).hash(hasher),
            Node::Link(target) => (3, target).hash(hasher),
            Node::Folder { entries, mode } => {
                (4, mode).hash(hasher);
                for (name, child) in entries {
                    name.hash(hasher);
                    self.hash_from(*child, hasher);
                }
            }
        }
    }

    /// Makes `folder` hold what the tree holds.
    pub fn materialise(&self, folder: &Path) {
        self.materialise_from(0, folder);
    }

    fn materialise_from(&self, ino: Ino, to: &Path) {
        match &self.nodes[&ino] {
            Node::Link(target) => symlink(target, to).unwrap(),
            Node::File { bytes, mode } => {
                match bytes {
                    Bytes::Original(path, _) => {
                        let linked =
                            path.to_string_lossy().contains("/opt/picket/versions/") && fs::hard_link(path, to).is_ok();
                        if !linked {
                            fs::copy(path, to).unwrap();
                        }
                    }
                    Bytes::Made(made) => fs::write(to, &**made).unwrap(),
                }
                fs::set_permissions(to, fs::Permissions::from_mode(*mode)).unwrap();
            }
            Node::Folder { entries, mode } => {
                fs::create_dir_all(to).unwrap();
                entries.iter().for_each(|(name, child)| self.materialise_from(*child, &to.join(name)));
                fs::set_permissions(to, fs::Permissions::from_mode(*mode)).unwrap();
            }
        }
    }
}

/// What a power cut left, and how one came to it.
#[derive(Debug, Clone)]
pub struct Cut {
    /// The disk.
    pub tree: Tree,
    /// In words: after which op, and what was lost.
    pub story: String,
}

/// Something that is lost or kept as one.
#[derive(Debug, Clone)]
enum Unit {
    /// Entries.
    Names(Op),
    /// Everything that was done to one file since it was synced.
    Data(Ino, Vec<Op>),
}

/// How the bytes of a file are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    Lost,
    Half,
    Zeros,
    Whole,
}

/// Every disk that a power cut may leave of `ops` on `before`, each once. Between two syncs all combinations are taken
/// where no more than `exhaustive` things are not safe; else the adversarial ones and `random` others.
pub fn cuts(before: &Tree, nodes: &Tree, ops: &[Op], exhaustive: usize, random: usize, seed: u64) -> Vec<Cut> {
    let mut dice = Dice(seed);
    let mut safe = before.clone();
    // Files and folders that are made on the way are empty until something is done to them.
    for ino in before.next..nodes.next {
        safe.nodes.insert(ino, fresh(&nodes.nodes[&ino]));
    }
    safe.next = nodes.next;
    let mut pending: Vec<Unit> = Vec::new();
    let mut seen = HashSet::new();
    let mut cuts = Vec::new();
    for (index, op) in ops.iter().enumerate() {
        if let Op::Sync(ino) = op {
            between_syncs(&safe, &pending, (exhaustive, random), &mut dice, index, &mut seen, &mut cuts);
            sync(&mut safe, &mut pending, *ino);
        } else {
            note(&mut pending, op);
        }
    }
    between_syncs(&safe, &pending, (exhaustive, random), &mut dice, ops.len(), &mut seen, &mut cuts);
    cuts
}

fn fresh(node: &Node) -> Node {
    match node {
        Node::File { mode, .. } => Node::File { bytes: Bytes::Made(Arc::default()), mode: *mode },
        Node::Folder { mode, .. } => Node::Folder { entries: BTreeMap::new(), mode: *mode },
        Node::Link(target) => Node::Link(target.clone()),
    }
}

fn note(pending: &mut Vec<Unit>, op: &Op) {
    let ino = match op {
        Op::Entries(_) | Op::Sync(_) => return pending.push(Unit::Names(op.clone())),
        Op::Write(ino, ..) | Op::Truncate(ino, _) | Op::Mode(ino, _) => *ino,
    };
    for unit in pending.iter_mut() {
        if let Unit::Data(known, ops) = unit
            && *known == ino
        {
            return ops.push(op.clone());
        }
    }
    pending.push(Unit::Data(ino, vec![op.clone()]));
}

/// Makes safe what a sync of `ino` makes safe.
fn sync(safe: &mut Tree, pending: &mut Vec<Unit>, ino: Ino) {
    let mut left = Vec::new();
    for unit in pending.drain(..) {
        match unit {
            Unit::Data(known, ops) if known == ino => ops.iter().for_each(|op| safe.apply(op)),
            Unit::Names(Op::Entries(entries)) => {
                let (now, later): (Vec<_>, Vec<_>) = entries.into_iter().partition(|(folder, ..)| *folder == ino);
                safe.set(&now);
                if !later.is_empty() {
                    left.push(Unit::Names(Op::Entries(later)));
                }
            }
            other => left.push(other),
        }
    }
    *pending = left;
}

fn between_syncs(
    safe: &Tree,
    pending: &[Unit],
    (exhaustive, random): (usize, usize),
    dice: &mut Dice,
    at: usize,
    seen: &mut HashSet<u64>,
    cuts: &mut Vec<Cut>,
) {
    let count = pending.len();
    let uniform = |keep| vec![keep; count];
    let mut choices = vec![uniform(Keep::Lost), uniform(Keep::Whole)];
    let is_data = |unit: &Unit| matches!(unit, Unit::Data(..));
    for keep in [Keep::Lost, Keep::Half, Keep::Zeros] {
        choices.push(pending.iter().map(|unit| if is_data(unit) { keep } else { Keep::Whole }).collect());
    }
    choices.push(pending.iter().map(|unit| if is_data(unit) { Keep::Whole } else { Keep::Lost }).collect());
    for (one, unit) in pending.iter().enumerate() {
        let but = |others, own| (0..count).map(|i| if i == one { own } else { others }).collect::<Vec<_>>();
        choices.push(but(Keep::Whole, Keep::Lost));
        choices.push(but(Keep::Lost, Keep::Whole));
        choices.push((0..count).map(|i| if i <= one { Keep::Whole } else { Keep::Lost }).collect());
        if is_data(unit) {
            choices.push(but(Keep::Whole, Keep::Half));
            choices.push(but(Keep::Whole, Keep::Zeros));
        }
    }
    if count <= exhaustive {
        for bits in 0..1_usize << count {
            choices.push((0..count).map(|i| if bits >> i & 1 == 1 { Keep::Whole } else { Keep::Lost }).collect());
        }
    } else {
        for _ in 0..random {
            choices.push((0..count).map(|_| [Keep::Whole, Keep::Lost][dice.below(2)]).collect());
        }
    }
    for choice in choices {
        let mut tree = safe.clone();
        pending.iter().zip(&choice).for_each(|(unit, keep)| apply_unit(&mut tree, unit, *keep));
        if seen.insert(tree.fingerprint()) {
            let lost: Vec<String> = choice.iter().enumerate().map(|(i, keep)| format!("{i}:{keep:?}")).collect();
            let story = format!("before sync {at}, of {count} unsafe things: {}", lost.join(" "));
            cuts.push(Cut { tree, story });
        }
    }
}

fn apply_unit(tree: &mut Tree, unit: &Unit, keep: Keep) {
    match (unit, keep) {
        (_, Keep::Lost) => {}
        (Unit::Names(op), _) => tree.apply(op),
        (Unit::Data(ino, ops), keep) => {
            ops.iter().for_each(|op| tree.apply(op));
            let length = tree.length(*ino);
            // A folder, or nothing but a mode.
            if length == 0 {
                return;
            }
            match keep {
                Keep::Half => tree.truncate(*ino, length / 2),
                Keep::Zeros => {
                    tree.truncate(*ino, 0);
                    tree.truncate(*ino, length);
                }
                Keep::Lost | Keep::Whole => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file `a` with "old", replaced by "new" with and without the sync of the new file.
    fn contents(sync_file: bool, sync_folder: bool) -> HashSet<Option<Vec<u8>>> {
        let mut before = Tree::default();
        let old = before.file(0o600);
        before.write(old, 0, b"old");
        before.set(&[(0, "a".into(), Some(old))]);
        let mut nodes = before.clone();
        let new = nodes.file(0o600);
        let mut ops = vec![
            Op::Entries(vec![(0, ".a.new".into(), Some(new))]),
            Op::Write(new, 0, Arc::from(*b"new")),
            Op::Sync(new),
            Op::Entries(vec![(0, "a".into(), Some(new)), (0, ".a.new".into(), None)]),
            Op::Sync(0),
            Op::Mode(old, 0o600),
        ];
        ops.retain(|op| !matches!(op, Op::Sync(ino) if (*ino == new && !sync_file) || (*ino == 0 && !sync_folder)));
        let cuts = cuts(&before, &nodes, &ops, 6, 0, 1);
        let content = |cut: &Cut| match &cut.tree.nodes[&cut.tree.find(Path::new("a"))?] {
            Node::File { bytes: Bytes::Made(made), .. } => Some(made.to_vec()),
            _ => None,
        };
        cuts.iter().map(content).collect()
    }

    #[test]
    fn a_file_that_is_synced_before_its_rename_is_old_or_new() {
        assert_eq!(contents(true, true), HashSet::from([Some(b"old".to_vec()), Some(b"new".to_vec())]));
    }

    #[test]
    fn one_that_is_not_may_be_empty_a_part_or_zeros() {
        let seen = contents(false, true);
        for bytes in [&b""[..], b"n", b"\0\0\0", b"new", b"old"] {
            assert!(seen.contains(&Some(bytes.to_vec())), "{bytes:?} is not among {seen:?}");
        }
    }

    #[test]
    fn a_rename_between_folders_may_leave_both_names_until_both_are_synced() {
        let mut tree = Tree::default();
        let (folder, file) = (tree.folder(0o755), tree.file(0o600));
        tree.set(&[(0, "d".into(), Some(folder)), (folder, "x".into(), Some(file))]);
        let ops =
            [Op::Entries(vec![(0, "y".into(), Some(file)), (folder, "x".into(), None)]), Op::Sync(0), Op::Sync(folder)];
        let names = |cut: &Cut| ["d/x", "y"].map(|path| cut.tree.find(Path::new(path)).is_some());
        let seen: HashSet<[bool; 2]> = cuts(&tree, &tree.clone(), &ops, 6, 0, 1).iter().map(names).collect();
        assert_eq!(seen, HashSet::from([[true, false], [true, true], [false, true]]), "gone from both is not possible");
    }
}
