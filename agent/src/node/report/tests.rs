//! The reporter against an API server that notes what it is told.

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::*;
use crate::client::ApiStatus;
use crate::pod::api::ApiResult;

/// Notes requests; says that the node was created with the uid `u`, and has it until it is deleted.
#[derive(Default)]
struct Notes(Mutex<Vec<(String, Value)>>, Mutex<Answer>);

/// What the server says when it is asked for the node.
#[derive(Clone, Copy, Default)]
enum Answer {
    #[default]
    Here,
    Gone,
    Nothing,
}

impl Notes {
    fn answers(&self, answer: Answer) {
        *self.1.lock() = answer;
    }

    fn note(&self, path: String, body: Value) -> BoxFuture<'_, ApiResult> {
        self.0.lock().push((path, body));
        async { Ok(json!({"metadata": {"uid": "u"}})) }.boxed()
    }

    fn statuses(&self) -> usize {
        let requests = self.0.lock();
        requests.iter().filter(|(path, _)| path.ends_with("/status")).count()
    }
}

impl Api for Notes {
    fn get(&self, path: String) -> BoxFuture<'_, ApiResult> {
        let not_found = ApiStatus {
            code: 404,
            ..ApiStatus::default()
        };
        let status = match *self.1.lock() {
            Answer::Here => return self.note(path, Value::Null),
            Answer::Gone => Some(not_found),
            Answer::Nothing => None,
        };
        let what = String::new();
        async { Err(ClientError { status, what }) }.boxed()
    }
    fn create(&self, path: String, object: Value) -> BoxFuture<'_, ApiResult> {
        self.note(path, object)
    }
    fn update(&self, path: String, object: Value) -> BoxFuture<'_, ApiResult> {
        self.note(path, object)
    }
    fn patch(&self, path: String, _: PatchKind, patch: Value) -> BoxFuture<'_, ApiResult> {
        self.note(path, patch)
    }
    fn delete(&self, path: String, options: Value) -> BoxFuture<'_, ApiResult> {
        self.note(path, options)
    }
    fn follow(&self, _: String, _: String) -> mpsc::Receiver<ListWatchEvent> {
        mpsc::channel(1).1
    }
}

#[test]
fn the_status_is_a_node_status() {
    let mut config = AgentConfig::new("n1");
    config.pod_cidr = "10.244.1.0/24,fd00:1::/64".to_owned();
    let machine = Machine {
        processors: 2,
        memory: 1 << 30,
        ip: "192.0.2.7".parse().ok(),
        other_ip: "2001:db8::7".parse().ok(),
        ..Machine::default()
    };
    let reporter = NodeReporter::new(config, machine, Arc::new(Notes::default()), 10250);
    let mut node = reporter.object();
    let pressure = Pressure {
        memory: true,
        disk: false,
    };
    node["status"] = reporter.status(pressure, Timestamp::now());
    let node: k8s_openapi::api::core::v1::Node = serde_json::from_value(node).unwrap();
    assert_eq!(node.spec.unwrap().pod_cidrs.unwrap(), ["10.244.1.0/24", "fd00:1::/64"]);
    let status = node.status.unwrap();
    assert_eq!(status.addresses.unwrap().len(), 3);
    assert_eq!(status.capacity.unwrap()["memory"].0, "1048576Ki");
    let conditions = status.conditions.unwrap();
    let of = |kind: &str| {
        let found = conditions.iter().find(|condition| condition.type_ == kind);
        found.unwrap().status.clone()
    };
    assert_eq!(
        (of("Ready"), of("MemoryPressure"), of("DiskPressure")),
        ("True".into(), "True".into(), "False".into())
    );
    assert_eq!(status.daemon_endpoints.unwrap().kubelet_endpoint.unwrap().port, 10250);
}

fn own(uid: Option<&str>, ready: bool) -> Own {
    Own {
        listed: true,
        uid: uid.map(str::to_owned),
        ready,
        ..Own::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_said_to_be_unknown_answers_at_once_and_a_deleted_one_falls_silent() {
    let notes = Arc::new(Notes::default());
    let reporter = NodeReporter::new(AgentConfig::new("n1"), Machine::default(), notes.clone(), 10250);
    // It was listed before it was registered: that is no deletion.
    let (say, hear) = watch::channel(own(None, false));
    let (ready, registered) = oneshot::channel();
    let running = tokio::spawn(reporter.run(ready, hear));
    registered.await.unwrap();
    say.send(own(Some("u"), true)).unwrap();
    tokio::time::sleep(Duration::from_secs(25)).await;
    let before = notes.statuses();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(notes.statuses(), before, "nothing changed");
    say.send(own(Some("u"), false)).unwrap();
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(notes.statuses(), before + 1, "somebody thinks that the node is away");
    // A list without the node is not enough: the server is asked, as often as it takes.
    for answer in [Answer::Here, Answer::Nothing] {
        notes.answers(answer);
        say.send(own(None, false)).unwrap();
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert!(!running.is_finished());
        say.send(own(Some("u"), true)).unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    notes.answers(Answer::Gone);
    say.send(own(None, false)).unwrap();
    running.await.unwrap();
}
