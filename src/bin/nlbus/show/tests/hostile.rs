//! No bytes make rendering panic.

use bytes::Bytes;
use proptest::{prelude::*, sample::Index, test_runner::TestRunner};

use super::{OBJECTS, Object, Options, dumps, namespace::Namespace, render_json, render_table};

/// One change of a dump: which message, which of its bytes, to what; and whether to cut the message
/// off there.
type Mutation = (Index, Index, u8, bool);

fn mutated(dumps: &[Vec<Bytes>], mutations: &[Mutation]) -> Vec<Vec<Bytes>> {
    let mut dumps = dumps.to_vec();
    for (message, position, value, cut) in mutations {
        let count = dumps.iter().map(Vec::len).sum::<usize>();
        let Some(message) = dumps.iter_mut().flatten().nth(message.index(count.max(1))) else {
            return dumps;
        };
        if message.is_empty() {
            continue;
        }
        let mut bytes = message.to_vec();
        let position = position.index(bytes.len());
        match cut {
            true => bytes.truncate(position),
            false => bytes[position] = *value,
        }
        *message = bytes.into();
    }
    dumps
}

/// Renders `cases` mutations of the dumps of this thread's namespace.
fn survive(object: Object, cases: u32) {
    let options = Options::default();
    let dumps = dumps(object, &options);
    // Lengths and types are low numbers at the start of words: half of the new values are such.
    let value = prop_oneof![any::<u8>(), 0_u8..24];
    let cut = prop::bool::weighted(0.05);
    let mutation = (any::<Index>(), any::<Index>(), value, cut);
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let mutations = prop::collection::vec(mutation, 1..12);
    let result = TestRunner::new(config).run(&mutations, |mutations| {
        let dumps = mutated(&dumps, &mutations);
        let json = render_json(object, &options, &dumps).is_ok();
        let table = render_table(object, &options, &dumps, &mut std::io::sink()).is_ok();
        prop_assert_eq!(json, table);
        Ok(())
    });
    result.unwrap();
}

#[test]
fn mutated_dumps_of_this_host_never_panic() {
    for object in OBJECTS {
        survive(object, 1000);
    }
}

#[test]
fn mutated_dumps_of_a_namespace_full_of_everything_never_panic() {
    let Some(namespace) = Namespace::with_everything() else { return };
    namespace.run(|| OBJECTS.into_iter().for_each(|object| survive(object, 500)));
}
