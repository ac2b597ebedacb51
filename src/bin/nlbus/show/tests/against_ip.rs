//! Every key and every value of ours is that of `ip -j`, and the other way round.

use std::process::Command;

use serde_json::Value;

use super::{Family, OBJECTS, Object, Options, Table, dumps, namespace::Namespace, render_json};

/// Two readings of a kernel in motion differ now and then; one that is wrong differs every time.
const ATTEMPTS: usize = 30;

/// Seconds that count down between two readings.
const COUNTDOWNS: [&str; 3] = ["valid_life_time", "preferred_life_time", "expires"];

fn have_ip() -> bool {
    let have = Command::new("ip").arg("-V").output().is_ok();
    if !have {
        println!("skipped: no command `ip`");
    }
    have
}

/// The arguments that give `ip` the meaning of `options`.
fn arguments(object: Object, options: &Options) -> Vec<String> {
    let mut arguments = vec!["-j".to_owned()];
    arguments.extend(options.family.map(|family| match family {
        Family::Inet => "-4".to_owned(),
        Family::Inet6 => "-6".to_owned(),
    }));
    arguments.extend([format!("{object:?}").to_lowercase(), "show".to_owned()]);
    arguments.extend(options.proxy.then(|| "proxy".to_owned()));
    match options.table {
        Some(Table::All) if object == Object::Rule => (),
        Some(Table::All) => arguments.extend(["table".to_owned(), "all".to_owned()]),
        Some(Table::Id(id)) => arguments.extend(["table".to_owned(), id.to_string()]),
        None => (),
    }
    arguments.extend(options.dev.iter().flat_map(|dev| ["dev".to_owned(), dev.clone()]));
    arguments
}

/// What `ip` prints in the namespace of this thread.
fn ip(arguments: &[String]) -> Value {
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "ip {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    match output.stdout.trim_ascii() {
        b"" => Value::Array(Vec::new()),
        text => serde_json::from_slice(text).unwrap(),
    }
}

/// The differences, each with its path.
fn differences(path: &str, ours: &Value, theirs: &Value, found: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Array(ours), Value::Array(theirs)) if ours.len() == theirs.len() => {
            for (position, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
                differences(&format!("{path}[{position}]"), ours, theirs, found);
            }
        }
        (Value::Object(ours), Value::Object(theirs)) => {
            for (key, ours) in ours {
                match theirs.get(key) {
                    Some(theirs) => differences(&format!("{path}.{key}"), ours, theirs, found),
                    None => found.push(format!("{path}.{key}: {ours} / nothing")),
                }
            }
            let missing = theirs.iter().filter(|(key, _)| !ours.contains_key(*key));
            found.extend(missing.map(|(key, theirs)| format!("{path}.{key}: nothing / {theirs}")));
            if found.is_empty() && !ours.keys().eq(theirs.keys()) {
                found.push(format!("{path}: order {:?} / {:?}", ours.keys(), theirs.keys()));
            }
        }
        (ours, theirs) if ours == theirs => (),
        (Value::Number(ours), Value::Number(theirs))
            if COUNTDOWNS.iter().any(|key| path.ends_with(key))
                && (ours.as_i64().unwrap() - theirs.as_i64().unwrap()).abs() <= 2 => {}
        (ours, theirs) => found.push(format!("{path}: {ours} / {theirs}")),
    }
}

/// `ip` prints the parameters of an encapsulation between the route's own keys, and one of them is
/// `dst` once more.
fn leave_out_encapsulation(ours: &Value, theirs: &mut Value) {
    let (Some(ours), Some(theirs)) = (ours.as_object(), theirs.as_object_mut()) else { return };
    if theirs.contains_key("encap") {
        theirs.retain(|key, _| ours.contains_key(key));
        theirs.insert("dst".to_owned(), ours["dst"].clone());
    }
}

/// The differences of one reading, as lines `path: ours / theirs`.
fn compare(object: Object, options: &Options) -> Vec<String> {
    let ours = render_json(object, options, &dumps(object, options)).unwrap();
    let mut theirs = ip(&arguments(object, options));
    for (ours, theirs) in ours.as_array().into_iter().flatten().zip(theirs.as_array_mut().unwrap())
    {
        leave_out_encapsulation(ours, theirs);
    }
    let mut found = Vec::new();
    differences("", &ours, &theirs, &mut found);
    found
}

#[track_caller]
fn assert_equals_ip(object: Object, options: &Options) {
    let mut last = Vec::new();
    for _ in 0..ATTEMPTS {
        last = compare(object, options);
        if last.is_empty() {
            return;
        }
    }
    let arguments = arguments(object, options).join(" ");
    panic!("`ip {arguments}` differs, ours / theirs:\n{}", last.join("\n"));
}

fn families() -> [Option<Family>; 3] {
    [None, Some(Family::Inet), Some(Family::Inet6)]
}

fn assert_every_view_equals_ip(devices: &[&str], tables: &[u32]) {
    for (object, family) in OBJECTS.iter().flat_map(|object| families().map(|f| (*object, f))) {
        let plain = Options { family, ..Options::default() };
        assert_equals_ip(object, &plain);
        if object == Object::Neigh {
            assert_equals_ip(object, &Options { proxy: true, ..plain.clone() });
        }
        if matches!(object, Object::Route | Object::Rule) {
            let tables = tables.iter().map(|&id| Table::Id(id)).chain([Table::All]);
            for table in tables.map(Some) {
                assert_equals_ip(object, &Options { table, ..plain.clone() });
            }
        }
        for dev in devices {
            assert_equals_ip(object, &Options { dev: Some((*dev).to_owned()), ..plain.clone() });
        }
    }
}

#[test]
fn every_view_of_this_host_equals_that_of_ip() {
    if have_ip() {
        assert_every_view_equals_ip(&["lo"], &[254, 255]);
    }
}

#[test]
fn every_view_of_a_namespace_full_of_everything_equals_that_of_ip() {
    let Some(namespace) = have_ip().then(Namespace::with_everything).flatten() else { return };
    namespace.run(|| {
        let devices = ["lo", "v0", "v1", "br0", "mv0", "vx0", "tun0", "far0", "another-name"];
        assert_every_view_equals_ip(&devices, &[100, 1000, 254, 255]);
    });
}
