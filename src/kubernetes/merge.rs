//! Merging a pod template into a pod.

use serde_json::{Map, Value};

/// Fields by which the elements of a list are matched.
const KEYS: [&str; 2] = ["name", "mountPath"];

/// Merges a template into a value. Objects are merged field by field; null removes a field. Lists whose
/// elements have a name (or a mount path) are merged by it, other lists are replaced.
pub(super) fn merge(into: &mut Value, template: Value) {
    match (into, template) {
        (Value::Object(into), Value::Object(template)) => merge_objects(into, template),
        (Value::Array(into), Value::Array(template)) => match key(into, &template) {
            Some(key) => merge_lists(into, template, key),
            None => *into = template,
        },
        (into, template) => *into = template,
    }
}

fn merge_objects(into: &mut Map<String, Value>, template: Map<String, Value>) {
    for (name, value) in template {
        if value.is_null() {
            into.remove(&name);
        } else {
            merge(into.entry(name).or_insert(Value::Null), value);
        }
    }
}

/// Returns the field that all elements have.
fn key(into: &[Value], template: &[Value]) -> Option<&'static str> {
    let has_all = |key: &&str| {
        into.iter()
            .chain(template)
            .all(|value| value[*key].is_string())
    };
    let mut keys = KEYS.into_iter().rev();
    keys.find(has_all).filter(|_| !into.is_empty())
}

fn merge_lists(into: &mut Vec<Value>, template: Vec<Value>, key: &str) {
    for value in template {
        match into.iter_mut().find(|old| old[key] == value[key]) {
            Some(old) => merge(old, value),
            None => into.push(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn templates_are_merged_by_name() {
        let mut pod = json!({
            "a": {"b": 1, "c": 2},
            "containers": [{"name": "sandbox", "mounts": [{"name": "v", "mountPath": "/a"}]}],
            "list": [1, 2],
        });
        let template = json!({
            "a": {"b": null, "d": 3},
            "containers": [
                {"name": "sandbox", "mounts": [{"name": "v", "mountPath": "/b"}], "image": "i"},
                {"name": "side"},
            ],
            "list": [3],
            "new": [{"name": "x"}],
        });
        merge(&mut pod, template);
        let expected = json!({
            "a": {"c": 2, "d": 3},
            "containers": [
                {"name": "sandbox", "image": "i", "mounts": [
                    {"name": "v", "mountPath": "/a"}, {"name": "v", "mountPath": "/b"}]},
                {"name": "side"},
            ],
            "list": [3],
            "new": [{"name": "x"}],
        });
        assert_eq!(pod, expected);
    }
}
