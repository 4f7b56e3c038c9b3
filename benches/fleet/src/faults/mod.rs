//! A fleet around which everything is killed: agents, hub, database, bus.

pub mod audit;
pub mod books;
pub mod child;
pub mod damage;
pub mod marks;
mod services;

use crate::hub::{Hub, HubPlan};
use crate::machine::become_agent;
use audit::{Subject, Verdict};
use books::Books;
use picket_agent::hub::CertStore;
use picket_pki::EnrolmentToken;
use services::Services;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

/// What is done to whom.
pub struct Plan {
    /// The built `picket`.
    pub picket: PathBuf,
    /// This program, of which agents are made.
    pub load: PathBuf,
    /// How many agents.
    pub agents: u32,
    /// Events a second of each.
    pub rate: u32,
    /// For how long things are killed.
    pub duration: Duration,
    /// What decides what is killed when.
    pub seed: u64,
    /// Whether the hub keeps everything in PostgreSQL.
    pub postgres: bool,
    /// What NATS is for.
    pub nats: Nats,
    /// Whether agents' waits are short, and the database need not sync.
    pub quick: bool,
    /// For how long the agents may deliver what is left, at the end.
    pub patience: Duration,
    /// Where everything lies.
    pub folder: PathBuf,
}

/// What NATS is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Nats {
    /// There is none.
    No,
    /// The hub has it for a bus.
    Bus,
    /// Events go through it, too, and not to the hub itself.
    Events,
}

/// How often what was killed.
#[derive(Debug, Default)]
pub struct Kills {
    /// Agents.
    pub agents: u64,
    /// The hub.
    pub hub: u64,
    /// PostgreSQL.
    pub postgres: u64,
    /// NATS.
    pub nats: u64,
    /// How often the hub ended by itself, because what it needs was not there when it started.
    pub hub_gave_up: u64,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// What was killed.
    pub kills: Kills,
    /// How the books stand.
    pub verdict: Verdict,
    /// How long agents delivered what was left.
    pub drained: Duration,
}

/// Random numbers that a seed repeats: SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

/// An agent in a process of its own.
struct Agent {
    subject: Subject,
    /// The NATS server through which its events go, where they do.
    through: Option<String>,
    child: Option<Child>,
    /// When it is started again.
    due: Option<Instant>,
}

impl Agent {
    fn start(&mut self, plan: &Plan) {
        let mut command = Command::new(&plan.load);
        let (index, rate) = (self.subject.index.to_string(), plan.rate.to_string());
        command.args(["agent", "--index", &index, "--rate", &rate, "--folder"]).arg(&self.subject.folder);
        if plan.quick {
            command.arg("--quick");
        }
        if let Some(server) = &self.through {
            command.args(["--nats", server]);
        }
        self.child = Some(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
        self.due = None;
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let status = child.wait().unwrap();
            assert!(status.code().is_none(), "agent {} ended by itself: {status}", self.subject.index);
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Does all of it.
pub fn run(plan: &Plan) -> Outcome {
    let mut services = Services::start(plan);
    let hub_folder = plan.folder.join("hub");
    let mut hub = Hub::make(&HubPlan {
        exe: &plan.picket,
        folder: &hub_folder,
        database: services.database(),
        heartbeat: "2s",
        more: &services.more(),
    });
    hub.start();
    let token = hub.token(usize::try_from(plan.agents).unwrap());
    let mut agents: Vec<Agent> = (0..plan.agents).map(|index| enrol(plan, &token, index, services.relay())).collect();
    agents.iter_mut().for_each(|agent| agent.start(plan));
    let mut kills = Kills::default();
    chaos(plan, &mut services, &mut hub, &mut agents, &mut kills);
    services.start_all();
    if hub.pid().is_none() {
        hub.start();
    }
    for agent in agents.iter_mut().filter(|agent| agent.child.is_none()) {
        agent.start(plan);
    }
    let began = Instant::now();
    let mut wrong = drain(plan, &mut hub, &mut agents, &mut kills);
    let drained = began.elapsed();
    for agent in &mut agents {
        kills.agents += agent.subject.kills;
    }
    let books = match services.database() {
        Some(url) => Books::postgres(&url),
        None => Books::sqlite(&hub.database()),
    };
    wrong.extend(wait_for_the_judge(&books, plan.patience));
    hub.stop();
    let subjects: Vec<Subject> = agents.into_iter().map(|mut agent| agent.take()).collect();
    let verdict = if wrong.is_empty() { audit::audit(&books, &subjects) } else { Verdict::default() };
    wrong.extend(verdict.wrong);
    Outcome { kills, verdict: Verdict { wrong, ..verdict }, drained }
}

impl Agent {
    /// What the audit needs of it.
    fn take(&mut self) -> Subject {
        let Subject { index, id, ref folder, kills } = self.subject;
        Subject { index, id, folder: folder.clone(), kills }
    }
}

fn enrol(plan: &Plan, token: &EnrolmentToken, index: u32, through: Option<String>) -> Agent {
    let folder = plan.folder.join(format!("agent-{index}"));
    std::fs::create_dir_all(&folder).unwrap();
    let set = become_agent(token, index, &AtomicUsize::new(0));
    let store = CertStore::new(folder.join("certs"));
    store.install(&store.lock().unwrap(), &set).unwrap();
    let subject = Subject { index, id: set.record.agent_id, folder, kills: 0 };
    Agent { subject, through, child: None, due: None }
}

/// Kills somebody every few seconds, and starts them again a little later.
fn chaos(plan: &Plan, services: &mut Services, hub: &mut Hub, agents: &mut [Agent], kills: &mut Kills) {
    let mut dice = Dice(plan.seed);
    let began = Instant::now();
    let mut next_kill = began + dice.millis(2_000, 4_000);
    let mut hub_due: Option<Instant> = None;
    while began.elapsed() < plan.duration {
        let now = Instant::now();
        services.start_due(now);
        for agent in agents.iter_mut().filter(|agent| agent.due.is_some_and(|due| due <= now)) {
            agent.start(plan);
        }
        if hub_due.is_some_and(|due| due <= now) {
            hub.spawn();
            hub_due = None;
        }
        if hub.pid().is_some() && hub.ended().is_some() {
            // As its service manager would: once more, a little later.
            kills.hub_gave_up += 1;
            hub_due = Some(now + Duration::from_secs(1));
        }
        if now >= next_kill {
            next_kill = now + dice.millis(1_000, 4_000);
            let back = now + dice.millis(200, 3_000);
            match dice.below(10) {
                0..=2 if hub.pid().is_some() => {
                    hub.kill();
                    kills.hub += 1;
                    hub_due = Some(back);
                }
                3 | 4 if services.kill_postgres(back) => kills.postgres += 1,
                5 if services.kill_nats(back) => kills.nats += 1,
                _ => {
                    let which = usize::try_from(dice.below(agents.len() as u64)).unwrap();
                    let agent = &mut agents[which];
                    if agent.child.is_some() {
                        agent.kill();
                        agent.subject.kills += 1;
                        agent.due = Some(back);
                    }
                }
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Lets each agent deliver what it has, and end. Says who did not.
fn drain(plan: &Plan, hub: &mut Hub, agents: &mut [Agent], kills: &mut Kills) -> Vec<String> {
    for agent in agents.iter_mut() {
        let input = agent.child.as_mut().unwrap().stdin.as_mut().unwrap();
        let _ = input.write_all(b"stop\n");
    }
    let deadline = Instant::now() + plan.patience;
    let mut wrong = Vec::new();
    for agent in agents.iter_mut() {
        loop {
            let child = agent.child.as_mut().unwrap();
            if let Some(status) = child.try_wait().unwrap() {
                let mut said = String::new();
                let _ = BufReader::new(child.stdout.take().unwrap()).read_line(&mut said);
                if !status.success() || said.trim() != "delivered" {
                    wrong.push(format!("agent {} ended with {status}: {said}", agent.subject.index));
                }
                agent.child = None;
                break;
            }
            if Instant::now() > deadline {
                wrong.push(format!(
                    "agent {} has not delivered everything after {:?}",
                    agent.subject.index, plan.patience
                ));
                break;
            }
            if let Some(status) = hub.ended() {
                kills.hub_gave_up += 1;
                wrong.push(format!("the hub ended by itself: {status}\n{}", hub.log_tail(5)));
                return wrong;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    wrong
}

/// Waits until every event is judged. A hub that was killed keeps its leases until they are over.
fn wait_for_the_judge(books: &Books, patience: Duration) -> Option<String> {
    let began = Instant::now();
    loop {
        let unjudged = books.unjudged();
        if unjudged == 0 {
            return None;
        }
        if began.elapsed() > patience {
            return Some(format!("{unjudged} events are not judged after {patience:?}"));
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// What a run came to, for people.
pub fn tell(name: &str, plan: &Plan, outcome: &Outcome) {
    let Outcome { kills, verdict, drained } = outcome;
    println!(
        "{name}{}: {} agents at {} events/s, {} s, seed {}",
        match plan.nats {
            Nats::No => "",
            Nats::Bus => " and NATS",
            Nats::Events => " and NATS, events through NATS",
        },
        plan.agents,
        plan.rate,
        plan.duration.as_secs(),
        plan.seed
    );
    println!(
        "  killed: agents {}, hub {}, PostgreSQL {}, NATS {}; the hub could not start {} times",
        kills.agents, kills.hub, kills.postgres, kills.nats, kills.hub_gave_up
    );
    println!(
        "  made {}, stored {}, gaps {}, came again and dropped {}, findings {}; delivered {} s after the last kill",
        verdict.made,
        verdict.stored,
        verdict.gaps,
        verdict.duplicates,
        verdict.findings,
        drained.as_secs()
    );
    for wrong in &verdict.wrong {
        println!("  WRONG: {wrong}");
    }
    println!("  {}", if verdict.wrong.is_empty() { "ok: the books agree" } else { "FAILED" });
}

/// A folder for everything, on the file system of `base`.
pub fn folder(base: &Path) -> tempfile::TempDir {
    tempfile::Builder::new().prefix("picket-faults-").tempdir_in(base).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_what_happens() {
        let rolls = |seed| (0..100).scan(Dice(seed), |dice, _| Some(dice.below(10))).collect::<Vec<_>>();
        assert_eq!(rolls(1), rolls(1));
        assert_ne!(rolls(1), rolls(2));
        assert!((0..10).all(|face| rolls(3).contains(&face)));
    }
}
