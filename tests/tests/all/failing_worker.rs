//! A worker whose turns fail where other workers' succeed.

use std::io::Write as _;

use tempfile::NamedTempFile;
use turnmill_client::NewTurn;
use turnmill_schema::{Outcome, TurnId};
use turnmill_tests::line::Line;
use turnmill_tests::scrape::Scrape;
use turnmill_tests::until;

const SCRIPT: &str = "[[rule]]\nsay = \"Well.\"\n";
/// It passes the look at a template at start, and fails by itself on a word.
const TEMPLATE: &str = "{% if 'boom' in messages[-1].content %}{{ teleport() }}{% endif %}\
    {% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

fn template() -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("the temporary directory is writable");
    file.write_all(TEMPLATE.as_bytes()).expect("the file takes it");
    file
}

async fn says_boom(line: &Line) -> Vec<TurnId> {
    line.enqueue((0..10).map(|i| NewTurn::user(format!("boom {i}"))).collect()).await
}

#[tokio::test]
async fn a_worker_whose_turns_others_complete_stops_claiming_and_says_so() {
    let line = Line::without_workers().await;
    let template = template();
    let template = template.path().to_str().expect("a path of text");
    let quick = ["--max-attempts", "1000", "--retry-base-ms", "5", "--retry-max-ms", "20"];
    let mut bad = line.scripted_worker(SCRIPT, &[&quick[..], &["--chat-template", template]].concat());
    let _good = line.scripted_worker(SCRIPT, &[&quick[..], &["--worker-name", "good"]].concat());

    until("the bad worker is not ready", async || {
        let turns = says_boom(&line).await;
        for told in line.told(&turns).await {
            assert_eq!((told.end.outcome, told.end.worker.as_deref()), (Outcome::Completed, Some("good")));
        }
        bad.ready() == (503, vec!["failing".to_owned()])
    })
    .await;
    assert_eq!(bad.get("/health/live").0, 200);
    assert_eq!(Scrape::of(&bad).series("turnmill_worker_phase{phase=\"failing\"}"), Some(1.0));

    // It takes nothing more, and still stops as it should.
    let claimed = || Scrape::of(&bad).series("turnmill_turns_claimed_total");
    let before = claimed();
    let turns = says_boom(&line).await;
    line.told(&turns).await;
    assert_eq!(claimed(), before);
    bad.sigterm();
    assert_eq!(bad.wait_exit().code(), Some(0));
    let told = bad.log_lines().into_iter().filter(|line| line["level"] == "ERROR");
    let told: Vec<String> = told.map(|line| line["message"].to_string()).collect();
    assert!(matches!(&told[..], [line] if line.contains("others completed them")), "{told:?}");
}

#[tokio::test]
async fn a_lone_worker_goes_on_whatever_fails() {
    let line = Line::without_workers().await;
    let template = template();
    let template = template.path().to_str().expect("a path of text");
    let worker = line.scripted_worker(SCRIPT, &["--max-attempts", "1", "--chat-template", template]);
    let turns = says_boom(&line).await;
    for told in line.told(&turns).await {
        assert_eq!(told.end.outcome, Outcome::Failed);
    }
    assert_eq!(worker.ready(), (200, Vec::new()));
    let turn = line.enqueue(vec![NewTurn::user("Hello.")]).await;
    assert_eq!(line.told(&turn).await[0].end.outcome, Outcome::Completed);
}
