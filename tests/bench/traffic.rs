//! What Redis and Postgres are asked, as they tell it themselves: whether two ways of asking make the same calls.

use crate::load::Ask;
use anyhow::ensure;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use std::collections::BTreeMap;
use std::time::Instant;
use tidemark_tests::stack::Stack;
use tidemark_tests::wait_for;

/// So many requests are made to count the commands of one: what is asked only now and then is little against it.
const REQUESTS: u64 = 1_000;
/// Switches on and off that statements are written down.
const SWITCH: &str = "alter system set log_statement = ";
/// How statements begin that are no request's.
const BESIDE: [&str; 5] = [
    // The serving layer and the worker look where the tidemark is.
    "select max(generation) from tidemark.tidemark",
    "select generation, cuts from tidemark.tidemark order by generation desc limit $1",
    // The bench has statements written down, and no more.
    SWITCH,
    "select pg_reload_conf()",
    "show log_statement",
];

/// Holds two ways of asking against each other: how many commands of each kind they send to Redis for each request, and
/// which statements to Postgres.
pub(crate) async fn same(stack: &Stack, [one, other]: [&Ask; 2]) -> anyhow::Result<()> {
    let (commands, expected) = (commands(stack, one).await?, commands(stack, other).await?);
    ensure!(
        commands == expected,
        "Redis is sent {commands:?} for each request, not {expected:?}; where --cache is too small for the realtime view, \
         groups are read again and again"
    );
    let (statements, expected) = (statements(stack, one).await?, statements(stack, other).await?);
    ensure!(statements == expected, "Postgres is asked {statements:#?}, not {expected:#?}");
    ensure!(!commands.is_empty() || !statements.is_empty(), "no call was seen, by Redis or by Postgres");
    Ok(())
}

/// How often each command is sent to Redis for one request, those that are sent at all.
async fn commands(stack: &Stack, ask: &Ask) -> anyhow::Result<BTreeMap<String, u64>> {
    let (before, begun) = (counted(stack).await, Instant::now());
    asked(ask, REQUESTS).await?;
    let (after, took) = (counted(stack).await, begun.elapsed());
    // What the layers send in as long a time by themselves doesn't count.
    tokio::time::sleep(took).await;
    let idle = counted(stack).await;
    let of = |counts: &BTreeMap<String, u64>, command: &str| counts.get(command).copied().unwrap_or(0);
    let for_one = |(command, &count): (&String, &u64)| {
        let sent = (count - of(&before, command)).saturating_sub(of(&idle, command) - count);
        (command.clone(), (sent + REQUESTS / 2) / REQUESTS)
    };
    Ok(after.iter().map(for_one).filter(|(_, times)| *times > 0).collect())
}

/// How often Redis was sent each command so far.
async fn counted(stack: &Stack) -> BTreeMap<String, u64> {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for told in stack.redis.ask_each::<String>(&["INFO", "commandstats"]).await {
        for line in told.lines() {
            let stats = line.strip_prefix("cmdstat_").and_then(|line| line.split_once(":calls="));
            let Some((command, rest)) = stats else { continue };
            let calls = rest.split(',').next().and_then(|calls| calls.parse::<u64>().ok());
            *counts.entry(command.to_owned()).or_default() += calls.unwrap_or(0);
        }
    }
    counts
}

async fn asked(ask: &Ask, times: u64) -> anyhow::Result<()> {
    let mut random = SmallRng::seed_from_u64(0);
    for _ in 0..times {
        ask(&mut random).await?;
    }
    Ok(())
}

/// The statements of one request, of each session in which it makes any.
async fn statements(stack: &Stack, ask: &Ask) -> anyhow::Result<Vec<Vec<String>>> {
    log_statements(stack, "all").await?;
    let before = std::fs::metadata(stack.postgres.log())?.len();
    let done = asked(ask, 1).await;
    log_statements(stack, "none").await?;
    done?;
    let log = std::fs::read(stack.postgres.log())?;
    let sessions = sessions(&String::from_utf8_lossy(&log[before as usize..]));
    let is_written = sessions.values().flatten().any(|sql| sql.starts_with(SWITCH));
    ensure!(is_written, "Postgres has not written down the bench's own last statement");
    let is_beside = |sql: &String| BESIDE.iter().any(|begin| sql.starts_with(begin));
    let mut told: Vec<_> = sessions.into_values().filter(|all| !all.iter().all(is_beside)).collect();
    // They are in the order of their processes' ids, which says nothing.
    told.sort_unstable();
    Ok(told)
}

/// Has Postgres write down each statement (`all`), or none. Where a session begins with the new setting, all others have it
/// before their next statement.
async fn log_statements(stack: &Stack, which: &str) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect(&stack.database).await?;
    let set = format!("{SWITCH}'{which}'");
    sqlx::raw_sql(AssertSqlSafe(set)).execute(&mut connection).await?;
    sqlx::raw_sql("select pg_reload_conf()").execute(&mut connection).await?;
    wait_for("Postgres taking the setting", async || {
        let mut fresh = PgConnection::connect(&stack.database).await.map_err(|error| error.to_string())?;
        let shown: String = sqlx::query_scalar("show log_statement")
            .fetch_one(&mut fresh)
            .await
            .map_err(|error| error.to_string())?;
        if shown == which { Ok(()) } else { Err(shown) }
    })
    .await;
    Ok(())
}

/// The statements of a log by their session's process, each in a line.
fn sessions(log: &str) -> BTreeMap<String, Vec<String>> {
    let mut sessions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    // What is longer than a line goes on in lines that begin with a tab.
    for line in log.replace("\n\t", " ").lines() {
        let Some((begin, said)) = line.split_once("] LOG:  ") else { continue };
        let executed = said.strip_prefix("execute ").and_then(|said| said.split_once(": "));
        let sql = said.strip_prefix("statement: ").or(executed.map(|(_, sql)| sql));
        if let (Some((_, process)), Some(sql)) = (begin.rsplit_once('['), sql) {
            let words: Vec<&str> = sql.split_whitespace().collect();
            sessions.entry(process.to_owned()).or_default().push(words.join(" "));
        }
    }
    sessions
}
