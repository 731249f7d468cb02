//! What Redis and Postgres are asked, as they tell it themselves: whether two ways of asking make the same calls.

use crate::load::Ask;
use anyhow::ensure;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use std::collections::BTreeMap;
use tidemark_tests::stack::Stack;
use tidemark_tests::wait_for;

/// The commands that read.
const READS: [&str; 3] = ["hget", "hgetall", "fcall_ro"];
/// So many requests are made to count those of one: what the layers ask beside them is little against it.
const REQUESTS: u64 = 1_000;

/// Holds two ways of asking against each other: how many commands of each kind they send to Redis for each request, and
/// which statements to Postgres.
pub(crate) async fn same(stack: &Stack, [one, other]: [&Ask; 2]) -> anyhow::Result<()> {
    let (found, expected) = (commands(stack, one).await?, commands(stack, other).await?);
    ensure!(
        found == expected,
        "{READS:?} of Redis for each request: {found:?}, not {expected:?}; where --cache is too small for the realtime view, \
         groups are read again and again"
    );
    let (found, expected) = (statements(stack, one).await?, statements(stack, other).await?);
    ensure!(found == expected, "Postgres is asked {found:#?}, not {expected:#?}");
    Ok(())
}

/// How often each command is sent for one request.
async fn commands(stack: &Stack, ask: &Ask) -> anyhow::Result<[u64; 3]> {
    let before = counted(stack).await;
    asked(ask, REQUESTS).await?;
    let after = counted(stack).await;
    Ok(std::array::from_fn(|place| (after[place] - before[place] + REQUESTS / 2) / REQUESTS))
}

/// How often Redis was sent each command so far.
async fn counted(stack: &Stack) -> [u64; 3] {
    let told = stack.redis.ask_each::<String>(&["INFO", "commandstats"]).await.concat();
    READS.map(|command| {
        let begin = format!("cmdstat_{command}:calls=");
        let calls = told.lines().filter_map(|line| line.strip_prefix(&begin)?.split(',').next());
        calls.filter_map(|calls| calls.parse::<u64>().ok()).sum()
    })
}

async fn asked(ask: &Ask, times: u64) -> anyhow::Result<()> {
    let mut random = SmallRng::seed_from_u64(0);
    for _ in 0..times {
        ask(&mut random).await?;
    }
    Ok(())
}

/// The statements of one request that reads the batch view; none where it doesn't.
async fn statements(stack: &Stack, ask: &Ask) -> anyhow::Result<Vec<String>> {
    log_statements(stack, "all").await?;
    let before = std::fs::metadata(stack.postgres.log())?.len();
    let done = asked(ask, 1).await;
    log_statements(stack, "none").await?;
    done?;
    let log = std::fs::read(stack.postgres.log())?;
    let sessions = sessions(&String::from_utf8_lossy(&log[before as usize..]));
    // The layers look at the tidemark too, in sessions of their own.
    let reading = |statements: &Vec<String>| statements.iter().any(|sql| sql.contains(" from views."));
    Ok(sessions.into_values().find(reading).unwrap_or_default())
}

/// Has Postgres write down each statement (`all`), or none. Where a session begins with the new setting, all others have it
/// before their next statement.
async fn log_statements(stack: &Stack, which: &str) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect(&stack.database).await?;
    let set = format!("alter system set log_statement = '{which}'");
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
