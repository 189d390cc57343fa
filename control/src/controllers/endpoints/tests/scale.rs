//! What a change costs.

use super::*;

/// A view that counts what is looked at.
struct Counting<'a> {
    memory: &'a crate::controllers::memory::Memory,
    gets: std::cell::Cell<usize>,
}

impl View for Counting<'_> {
    fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Arc<Object>> {
        self.gets.set(self.gets.get() + 1);
        self.memory.get(resource, namespace, name)
    }

    fn list(&self, resource: &str, _: Option<&str>) -> Vec<Arc<Object>> {
        panic!("all {resource} are looked at");
    }

    fn dependents(&self, uid: &str) -> Vec<Arc<Object>> {
        panic!("all dependents of {uid} are looked at");
    }

    fn pods_on_node(&self, node: &str) -> Vec<Arc<Object>> {
        panic!("all pods on {node} are looked at");
    }
}

#[test]
fn one_pod_concerns_its_own_services_only() {
    const SERVICES_COUNT: usize = 1000;
    let mut memory = crate::controllers::memory::Memory::default();
    for number in 0..SERVICES_COUNT {
        let labels = json!({"app": format!("a{number}"), "tier": "web"});
        memory.put(
            SERVICES,
            "d",
            json!({"metadata": {"name": format!("s{number}")}, "spec": {"selector": labels, "ports": [{"port": 80}]}}),
        );
        for pod in 0..3 {
            memory.put(
                "pods",
                "d",
                json!({"metadata": {"name": format!("p{number}-{pod}"), "labels": labels},
                "status": {"podIP": "10.244.0.2"}}),
            );
        }
    }
    let mut controllers = controllers();
    let events = std::mem::take(&mut memory.events);
    let counting = Counting {
        memory: &memory,
        gets: Default::default(),
    };
    for event in &events {
        for controller in &controllers {
            controller.keys(&counting, event, &mut |_| ());
        }
    }
    memory.patch("pods", "d", "p7-1", &json!({"status": {"phase": "Running"}}));
    let event = memory.events.pop().unwrap();
    let counting = Counting {
        memory: &memory,
        gets: Default::default(),
    };
    for (place, controller) in controllers.iter_mut().enumerate() {
        let mut keys = Vec::new();
        controller.keys(&counting, &event, &mut |key| keys.push(key));
        keys.dedup();
        assert_eq!(keys.len(), usize::from(place < 2), "{keys:?}");
        for key in keys {
            assert_eq!(&*key.name, "s7");
            let now = crate::controllers::controller::Now {
                wall: jiff::Timestamp::UNIX_EPOCH,
                monotonic: std::time::Duration::ZERO,
            };
            let outcome = controller.reconcile(
                &Context {
                    view: &counting,
                    now,
                    failure: None,
                },
                &key,
            );
            assert_eq!(outcome.operations.len(), 1);
        }
    }
    assert!(
        counting.gets.get() <= 20,
        "{} objects were looked at",
        counting.gets.get()
    );
}
