//! A look at a cluster as lines of text. What it looks like follows from what there is and from the size, and from nothing else.

use super::super::output::{harmless, table};
use super::snapshot::{Load, NodeView, Snapshot, TenantView};

/// How much of a cluster's identity is shown: enough to tell it.
const SHOWN_DIGITS: usize = 12;
/// How wide a bar is.
const BAR_WIDTH: u64 = 10;

/// Columns and lines of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub columns: usize,
    pub lines: usize,
}

/// A part as a bar and a figure; above the whole, the bar is full.
fn bar(permille: u64) -> String {
    let filled = (permille.min(1_000) * BAR_WIDTH).div_ceil(1_000);
    let of = |sign: char, count: u64| (0..count).map(|_| sign).collect::<String>();
    format!("[{}{}] {:>4}%", of('#', filled), of('.', BAR_WIDTH - filled), permille.div_ceil(10))
}

/// Who leads, by name where one is known.
fn leader(snapshot: &Snapshot) -> String {
    match (snapshot.leader, snapshot.nodes.iter().find(|node| node.state == "leads")) {
        (None, _) => "nobody leads".to_owned(),
        (Some(number), Some(node)) => format!("{} leads as server {number}", harmless(&node.name)),
        (Some(number), None) => format!("server {number} leads"),
    }
}

/// A number of events in a minute as so many a second, with one digit behind the point.
fn per_second(in_minute: u64) -> String {
    let tenths = in_minute / 6;
    format!("{}.{}", tenths / 10, tenths % 10)
}

fn head(snapshot: &Snapshot, note: Option<&str>) -> Vec<String> {
    let sum = |value: fn(&TenantView) -> u64| snapshot.tenants.iter().map(value).fold(0, u64::saturating_add);
    let cluster: String = harmless(&snapshot.cluster).chars().take(SHOWN_DIGITS).collect();
    let mut lines = vec![
        format!(
            "cluster   {cluster}, {} in term {}, {} vote(s), applied to {}",
            leader(snapshot),
            snapshot.term,
            snapshot.voters.len(),
            snapshot.applied_index
        ),
        format!(
            "work      {} job(s) live, {} task(s) wait, {} held",
            snapshot.jobs_live,
            sum(|tenant| tenant.pending_tasks),
            sum(|tenant| tenant.held_tasks)
        ),
        format!(
            "ended     {} attempt(s) in the last minute, {} a second",
            snapshot.attempts_ended_in_last_minute,
            per_second(snapshot.attempts_ended_in_last_minute)
        ),
        format!("pressure  {}", harmless(&snapshot.pressure)),
    ];
    if let Some(refusing) = &snapshot.refusing {
        lines.push(format!("refusing  new work: {}", harmless(refusing)));
    }
    if let Some(note) = note {
        lines.push(format!("STALE     {}", harmless(note)));
    }
    lines
}

fn tenants(tenants: &[TenantView]) -> Vec<String> {
    let row = |tenant: &TenantView| {
        vec![
            harmless(&tenant.name),
            if tenant.suspended { "suspended" } else { "active" }.to_owned(),
            tenant.pending_tasks.to_string(),
            tenant.held_tasks.to_string(),
            bar(tenant.share_permille),
            format!("{}.{:03}", tenant.weight_milli / 1_000, tenant.weight_milli % 1_000),
        ]
    };
    let rows: Vec<Vec<String>> = tenants.iter().map(row).collect();
    lines(&table(&["TENANT", "STANDING", "PENDING", "HELD", "SHARE", "WEIGHT"], &rows))
}

fn nodes(nodes: &[NodeView]) -> Vec<String> {
    let row = |node: &NodeView| {
        let of = |shown: fn(&Load) -> String| node.load.as_ref().map(shown).unwrap_or_default();
        vec![
            harmless(&node.name),
            harmless(&node.role),
            harmless(&node.state),
            of(|load| format!("{}/{}", load.held, load.slots)),
            of(|load| bar(load.cpu_permille)),
            of(|load| bar(load.memory_permille)),
        ]
    };
    let rows: Vec<Vec<String>> = nodes.iter().map(row).collect();
    lines(&table(&["NODE", "ROLE", "STATE", "HELD/SLOTS", "CPU", "MEMORY"], &rows))
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

/// As many lines of a table as there is room for; the last one says how many are left out.
fn cut(mut table: Vec<String>, room: usize) -> Vec<String> {
    if table.len() > room {
        let left_out = table.len() + 1 - room.max(1);
        table.truncate(room.saturating_sub(1));
        if room > 0 {
            table.push(format!("… {left_out} more"));
        }
    }
    table
}

/// A look as text, within a size where there is one. `note` says why it is not the latest.
pub fn screen(snapshot: &Snapshot, size: Option<Size>, note: Option<&str>) -> String {
    let head = head(snapshot, note);
    let (mut tenants, mut nodes) = (tenants(&snapshot.tenants), nodes(&snapshot.nodes));
    if let Some(size) = size {
        // Two blank lines stand between the three parts. A table that needs less than its half leaves the rest to the other.
        let room = size.lines.saturating_sub(head.len() + 2);
        let for_tenants = (room / 2).max(room.saturating_sub(nodes.len()));
        tenants = cut(tenants, for_tenants);
        nodes = cut(nodes, room - tenants.len());
    }
    let blank = || vec![String::new()];
    let mut all = [head, blank(), tenants, blank(), nodes].concat();
    if let Some(size) = size {
        all.truncate(size.lines);
        all.iter_mut().for_each(|line| *line = line.chars().take(size.columns).collect());
    }
    let mut text = all.join("\n");
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str, share_permille: u64) -> TenantView {
        TenantView {
            name: name.to_owned(),
            suspended: name == "blue",
            pending_tasks: 300,
            held_tasks: 12,
            share_permille,
            weight_milli: 1_500,
        }
    }

    fn snapshot() -> Snapshot {
        let node = |name: &str, role: &str, state: &str, load| NodeView {
            name: name.to_owned(),
            role: role.to_owned(),
            state: state.to_owned(),
            load,
        };
        Snapshot {
            cluster: "0123456789abcdef".to_owned(),
            leader: Some(2),
            term: 7,
            voters: vec![1, 2, 3],
            applied_index: 4_711,
            pressure: "warning".to_owned(),
            refusing: None,
            jobs_live: 5,
            attempts_ended_in_last_minute: 100,
            tenants: vec![tenant("red", 480), tenant("blue", 0)],
            nodes: vec![
                node("s2", "server", "leads", None),
                node(
                    "w1",
                    "worker",
                    "present",
                    Some(Load { held: 24, slots: 64, cpu_permille: 1_250, memory_permille: 1 }),
                ),
            ],
        }
    }

    #[test]
    fn a_look_shows_who_leads_what_waits_and_how_full_everything_is() {
        let expected = "\
cluster   0123456789ab, s2 leads as server 2 in term 7, 3 vote(s), applied to 4711
work      5 job(s) live, 600 task(s) wait, 24 held
ended     100 attempt(s) in the last minute, 1.6 a second
pressure  warning

TENANT  STANDING   PENDING  HELD  SHARE               WEIGHT
red     active     300      12    [#####.....]   48%  1.500
blue    suspended  300      12    [..........]    0%  1.500

NODE  ROLE    STATE    HELD/SLOTS  CPU                 MEMORY
s2    server  leads
w1    worker  present  24/64       [##########]  125%  [#.........]    1%
";
        assert_eq!(screen(&snapshot(), None, None), expected);
    }

    #[test]
    fn what_is_refused_and_what_is_old_is_said() {
        let refusing = Snapshot { refusing: Some("the disk is full".to_owned()), leader: None, ..snapshot() };
        let text = screen(&refusing, None, Some("9 s old: nobody answers"));
        for said in
            ["refusing  new work: the disk is full", "STALE     9 s old: nobody answers", "nobody leads"]
        {
            assert!(text.contains(said), "`{said}` is missing in {text}");
        }
    }

    #[test]
    fn it_keeps_within_every_size_and_says_how_many_are_left_out() {
        let many = Snapshot {
            tenants: (0..50).map(|number| tenant(&format!("t{number}"), 1)).collect(),
            ..snapshot()
        };
        for (columns, lines) in [(80, 24), (20, 10), (200, 7), (1, 1), (0, 0), (80, 3)] {
            let text = screen(&many, Some(Size { columns, lines }), None);
            assert!(text.lines().count() <= lines.max(1), "{lines} lines: {text}");
            assert!(text.lines().all(|line| line.chars().count() <= columns), "{columns} columns: {text}");
        }
        let text = screen(&many, Some(Size { columns: 80, lines: 24 }), None);
        // Four lines of head, two blank ones, three of nodes: fifteen are left, of which one is the header and one says the rest.
        assert!(text.contains("t12 ") && !text.contains("t13 ") && text.contains("… 37 more"), "{text}");
        assert!(text.contains("w1 "), "the nodes have their place: {text}");
        let all = screen(&many, None, None);
        assert!(all.contains("t49") && !all.contains('…'));
    }

    #[test]
    fn a_name_steers_no_terminal() {
        let hostile = Snapshot { tenants: vec![tenant("\u{1b}[2Jx", 1)], ..snapshot() };
        assert!(!screen(&hostile, None, Some("\u{1b}]0;x\u{7}")).contains('\u{1b}'));
    }

    #[test]
    fn bars_round_up_so_that_a_little_is_seen() {
        for (permille, shown) in [
            (0, "[..........]    0%"),
            (1, "[#.........]    1%"),
            (500, "[#####.....]   50%"),
            (999, "[##########]  100%"),
            (5_000, "[##########]  500%"),
        ] {
            assert_eq!(bar(permille), shown);
        }
    }
}
