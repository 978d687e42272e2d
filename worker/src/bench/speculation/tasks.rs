//! What is said: conversations of agents, whose replies repeat much of what they read, and questions whose answers repeat
//! little.

/// What the model is.
pub(super) const SYSTEM: &str =
    "You are a coding agent. You work with tools and answer with what was asked for and nothing else.";

/// A tool's result and what is to be done with it.
pub(super) const AGENT: [&str; 8] = [
    r##"The tool list_files returned:
[{"path": "src/main.rs", "size": 2210, "modified": "2025-03-02"}, {"path": "src/lib.rs", "size": 18034, "modified": "2025-03-04"}, {"path": "src/config/load.rs", "size": 9120, "modified": "2025-02-11"}, {"path": "tests/end_to_end.rs", "size": 4410, "modified": "2025-01-30"}]
Write the same JSON again, pretty printed, one object a line."##,
    r##"Here is a function:
```python
def read_settings(path, defaults):
    settings = dict(defaults)
    with open(path) as file:
        for line in file:
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            name, value = line.split("=", 1)
            settings[name.strip()] = value.strip()
    return settings
```
Write the whole function again, with a docstring after its first line."##,
    r##"The tool run_tests returned:
test config::load::tests::a_flag_beats_the_file ... ok
test config::load::tests::an_unknown_key_is_refused ... FAILED
test config::values::tests::sizes_have_units ... ok
test store::keys::tests::a_key_has_64_digits ... FAILED
test store::keys::tests::a_missing_key_is_told ... ok
List the names of all tests that failed, then the names of all tests that passed, each on a line of its own."##,
    r##"The tool search returned:
src/engine/loop.rs:118: let plan = scheduler.schedule();
src/engine/loop.rs:131: let left = scheduler.apply(&sampled);
src/bench/engine.rs:207: let plan = scheduler.schedule();
src/bench/engine.rs:219: scheduler.apply(&sampled);
For each line call the tool read_file. Answer with JSON calls like {"tool": "read_file", "arguments": {"path": "src/engine/loop.rs", "line": 118}}."##,
    r##"The tool get_invoice returned:
{"invoice": "INV-20418", "customer": {"name": "Harbour Lights Ltd", "city": "Trondheim"}, "lines": [{"item": "sensor", "count": 12, "price": 41.5}, {"item": "gateway", "count": 2, "price": 310.0}], "currency": "EUR", "due": "2025-04-30"}
Call the tool create_reminder with the invoice, the customer, the lines and the due date as JSON arguments."##,
    r##"Here is a configuration file:
[server]
address = "127.0.0.1:9470"
workers = 4
log = "info,server=debug"

[store]
url = "file:///var/lib/server/store"
max_bytes = "16GiB"
timeout_ms = 5000
Write the whole file again with workers = 8 and timeout_ms = 2500."##,
    r##"The tool git_diff returned:
-    pub fn open(path: &Path) -> Result<Store, StoreError> {
-        let file = File::open(path)?;
-        Ok(Store { file, entries: Vec::new() })
+    pub fn open(path: &Path, limit: usize) -> Result<Store, StoreError> {
+        let file = File::open(path)?;
+        Ok(Store { file, entries: Vec::with_capacity(limit) })
Write the function as it is after the change, then as it was before it."##,
    r##"The tool list_users returned:
id,name,email,role
1041,Ada Berg,ada.berg@example.org,admin
1042,Jon Dahl,jon.dahl@example.org,editor
1043,Mia Lund,mia.lund@example.org,viewer
1044,Per Moen,per.moen@example.org,editor
Write this table as a JSON array of objects with the keys id, name, email and role."##,
];

/// Questions.
pub(super) const CHAT: [&str; 8] = [
    "Why is the sky blue during the day and red in the evening?",
    "Tell me a short story about a lighthouse keeper who finds a letter.",
    "What should I think of before I adopt a dog?",
    "Explain how a bicycle stays upright.",
    "Describe a market in a small town on a rainy morning.",
    "What is the difference between weather and climate?",
    "Give me advice for a first talk in front of many people.",
    "How did people keep food fresh before there were refrigerators?",
];
