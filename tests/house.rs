//! The rules of the house, read from `ARCHITECTURE.md` and checked against the sources.
//!
//! Sources are read as tokens, not compiled: comments and literals are left out, paths that begin with
//! `crate`, `super` or `self` are followed to the module that they name.

#![allow(clippy::unwrap_used)] // Helpers of tests, too, fail by panicking.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const FILE_LINES_MAX: usize = 600;

/// Paths, as tokens, that stand nowhere under `src/`, and why.
const FORBIDDEN: &[(&[&str], &str)] = &[
    (&["unbounded_channel"], "every queue has a bound"),
    (&["thread", "::", "sleep"], "a thread never sleeps"),
];

/// Words that stand only in files that a section of `ARCHITECTURE.md` names with their reason.
const EXCEPTIONAL: &[(&str, &str)] = &[("unsafe", "Unsafe code"), ("sleep", "Pauses")];

/// Directories of a machine, in two pieces so that this file does not name them.
const MACHINE_PATHS: &[(&str, &str)] = &[("/wo", "rk/"), ("/ro", "ot/")];

#[test]
fn no_module_imports_what_the_layer_table_does_not_allow() {
    let layers = Layers::parse(&read("ARCHITECTURE.md"));
    none(sources("src").iter().flat_map(|(path, text)| imports(path, text, &layers)));
}

#[test]
fn every_module_of_the_crate_stands_in_the_layer_table() {
    let layers = Layers::parse(&read("ARCHITECTURE.md"));
    let modules: BTreeSet<String> =
        sources("src").keys().filter_map(|path| module_of(path).first().cloned()).collect();
    let missing = modules.iter().filter(|module| !layers.0.contains_key(*module));
    none(missing.map(|module| format!("`{module}` has no row in the layer table")));
}

#[test]
fn nom_stays_inside_wire() {
    none(sources("src").iter().flat_map(|(path, text)| {
        let inside = module_of(path).first().is_some_and(|module| module == "wire");
        let found = if inside { Vec::new() } else { lines_with(text, "nom") };
        found.into_iter().map(move |line| format!("{path}:{line}: `nom` outside of wire"))
    }));
}

#[test]
fn forbidden_calls_are_not_made() {
    none(sources("src").iter().flat_map(|(path, text)| {
        FORBIDDEN.iter().flat_map(move |(call, reason)| {
            let found = lines_with_path(text, call).into_iter();
            found.map(move |line| format!("{path}:{line}: `{}`: {reason}", call.concat()))
        })
    }));
}

#[test]
fn unsafe_code_and_pauses_stand_only_where_architecture_says() {
    let architecture = read("ARCHITECTURE.md");
    for (word, title) in EXCEPTIONAL {
        let allowed = backticked(section(&architecture, title));
        let sources = sources("src");
        let others = sources.iter().filter(|(path, _)| !allowed.contains(path.as_str()));
        none(others.flat_map(|(path, text)| {
            let found = lines_with(text, word).into_iter();
            found.map(move |line| format!("{path}:{line}: `{word}`; no such file under {title:?}"))
        }));
    }
}

#[test]
fn no_file_is_longer_than_the_limit() {
    let files = ["src", "tests", "benches", "fuzz"].into_iter().flat_map(sources);
    none(files.filter(|(_, text)| text.lines().count() > FILE_LINES_MAX).map(|(path, text)| {
        format!("{path}: {} lines; at most {FILE_LINES_MAX}", text.lines().count())
    }));
}

#[test]
fn every_dependency_is_used_and_has_its_reason() {
    let dependencies = dependencies(&read("Cargo.toml"));
    let architecture = read("ARCHITECTURE.md");
    let reasons: BTreeSet<&str> = rows(section(&architecture, "Dependencies"))
        .filter_map(|row| row.first()?.strip_prefix('`')?.strip_suffix('`'))
        .collect();
    let sources = sources("src");
    let unused = dependencies.iter().filter(|name| {
        let word = name.replace('-', "_");
        let paths: [&[&str]; 2] = [&[&word, "::"], &["use", &word]];
        sources.values().all(|text| paths.iter().all(|path| lines_with_path(text, path).is_empty()))
    });
    let unused =
        unused.map(|name| format!("`{name}` is in Cargo.toml, but nothing in src names it"));
    let unexplained = dependencies.iter().filter(|name| !reasons.contains(name.as_str()));
    let unexplained = unexplained.map(|name| format!("`{name}` has no row under Dependencies"));
    let stale = reasons.iter().filter(|name| !dependencies.contains(**name));
    let stale = stale.map(|name| format!("`{name}` has a row, but is not in Cargo.toml"));
    none(unused.chain(unexplained).chain(stale));
}

#[test]
fn no_file_names_a_directory_of_the_machine_it_was_written_on() {
    none(tracked().iter().flat_map(|path| {
        let text = fs::read(root().join(path)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let found = MACHINE_PATHS.iter().map(|(a, b)| format!("{a}{b}"));
        let found: Vec<_> = found.filter(|directory| text.contains(directory.as_str())).collect();
        found.into_iter().map(move |directory| format!("{}: names {directory}", path.display()))
    }));
}

#[track_caller]
fn none(findings: impl Iterator<Item = String>) {
    let findings: Vec<String> = findings.collect();
    assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
}

/// For each module, what it may import. The last row, the binary, sees the crate from outside.
struct Layers(BTreeMap<String, BTreeSet<String>>);

impl Layers {
    fn parse(architecture: &str) -> Self {
        let mut layers = BTreeMap::new();
        let table: Vec<_> = rows(section(architecture, "Layers")).collect();
        let name = |row: &[&str]| row[0].trim_matches('`').trim_end_matches('/').to_owned();
        let all: Vec<String> = table.iter().map(|row| name(row)).collect();
        for (index, row) in table.iter().enumerate() {
            let words: Vec<&str> = row[2].split([',', ';']).map(str::trim).collect();
            let allowed = all.iter().enumerate().filter(|(above, module)| {
                words.contains(&module.as_str()) || (words.contains(&"all above") && *above < index)
            });
            layers.insert(name(row), allowed.map(|(_, module)| module.clone()).collect());
        }
        assert!(layers.len() > 1, "ARCHITECTURE.md has no layer table");
        Self(layers)
    }
}

/// Findings about the modules that the file at `path` names.
fn imports(path: &str, text: &str, layers: &Layers) -> Vec<String> {
    let home = module_of(path);
    let Some(own) = home.first() else { return Vec::new() };
    if own == "bin/nlbus" {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for (line, target) in named_modules(text, &home) {
        let Some(target) = target.first() else { continue };
        let allowed = target == own || layers.0.get(own).is_some_and(|own| own.contains(target));
        if !allowed {
            let known = layers.0.contains_key(target);
            let what = if known { "which its row does not allow" } else { "which is no module" };
            findings.push(format!("{path}:{line}: `{own}` imports `{target}`, {what}"));
        }
    }
    findings
}

/// `src/a/b.rs` and `src/a/b/mod.rs` are `[a, b]`; `src/lib.rs` is `[]`.
fn module_of(path: &str) -> Vec<String> {
    let path = path.strip_prefix("src/").unwrap_or(path);
    if path.starts_with("bin/nlbus/") {
        return vec!["bin/nlbus".to_owned()];
    }
    let path = path.strip_suffix(".rs").unwrap_or(path);
    path.split('/').filter(|part| !["lib", "mod"].contains(part)).map(str::to_owned).collect()
}

/// Paths from the root of the crate that `text` names, and the lines where. `home` is its module.
fn named_modules(text: &str, home: &[String]) -> Vec<(usize, Vec<String>)> {
    let tokens = tokens(text);
    let word = |at: usize| tokens.get(at).map_or("", |(_, token)| token.as_str());
    let mut found = Vec::new();
    let mut inline = Vec::new();
    let mut depth = 0_usize;
    for at in 0..tokens.len() {
        match word(at) {
            "{" => {
                depth += 1;
                if at >= 2 && word(at - 2) == "mod" {
                    inline.push((depth, word(at - 1).to_owned()));
                }
            }
            "}" => {
                inline.retain(|(opened, _)| *opened < depth);
                depth = depth.saturating_sub(1);
            }
            "crate" | "super" | "self"
                if word(at + 1) == "::" && (at == 0 || word(at - 1) != "::") =>
            {
                let here = home.iter().chain(inline.iter().map(|(_, name)| name));
                let mut leaves = Vec::new();
                path_leaves(&tokens, at, here.cloned().collect(), &mut leaves);
                found.extend(leaves.into_iter().map(|leaf| (tokens[at].0, leaf)));
            }
            _ => {}
        }
    }
    found
}

type Token = (usize, String);

/// Follows a path or a tree of `use` from `at`, seen from the module `base`. Returns where it ends.
fn path_leaves(
    tokens: &[Token],
    mut at: usize,
    mut base: Vec<String>,
    leaves: &mut Vec<Vec<String>>,
) -> usize {
    loop {
        match tokens.get(at).map(|(_, token)| token.as_str()) {
            Some("crate") => base.clear(),
            Some("super") => drop(base.pop()),
            Some("self") => {}
            Some("{") => {
                at += 1;
                while let Some((_, token)) = tokens.get(at).filter(|(_, token)| token != "}") {
                    at = match token.as_str() {
                        "," => at + 1,
                        _ => path_leaves(tokens, at, base.clone(), leaves).max(at + 1),
                    };
                }
                return at + 1;
            }
            Some(name) => base.push(name.to_owned()),
            None => return at,
        }
        at += 1;
        if tokens.get(at).is_none_or(|(_, token)| token != "::") {
            leaves.push(base);
            return at;
        }
        at += 1;
    }
}

fn lines_with(text: &str, word: &str) -> Vec<usize> {
    lines_with_path(text, &[word])
}

fn lines_with_path(text: &str, path: &[&str]) -> Vec<usize> {
    let tokens = tokens(text);
    let found = tokens
        .windows(path.len())
        .filter(|window| window.iter().zip(path).all(|((_, token), word)| token == word));
    found.map(|window| window[0].0).collect()
}

/// Words, `::` and single characters of Rust source, with their lines; no comments, no literals.
fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text;
    let mut line = 1;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment(rest),
            '"' => string(rest),
            'r' | 'b' | 'c' if literal_prefix(rest) > 0 => {
                let prefix = literal_prefix(rest);
                prefix + raw_or_plain(&rest[prefix..], rest[..prefix].contains('r'))
            }
            '\'' => char_or_lifetime(rest),
            ':' if rest.starts_with("::") => 2,
            _ if first == '_' || first.is_alphanumeric() => word_length(rest),
            _ => first.len_utf8(),
        };
        let (token, after) = rest.split_at(length);
        let skipped = first.is_whitespace() || "\"'".contains(first) || token.len() > 2;
        if word_length(token) == token.len() || !skipped && !token.starts_with('/') {
            tokens.push((line, token.to_owned()));
        }
        line += token.matches('\n').count();
        rest = after;
    }
    tokens
}

fn word_length(text: &str) -> usize {
    text.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(text.len())
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        let (change, step) = match rest {
            [b'/', b'*', ..] => (1, 2),
            [b'*', b'/', ..] => (-1, 2),
            _ => (0, 1),
        };
        depth += change;
        at += step;
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

/// The length of `r`, `b`, `br` … if a string or byte literal follows it, else 0.
fn literal_prefix(text: &str) -> usize {
    ["br", "cr", "r", "b", "c"]
        .into_iter()
        .find_map(|prefix| {
            let rest = text.strip_prefix(prefix)?;
            let quoted = rest.trim_start_matches('#').starts_with('"');
            let plain = rest.starts_with(['"', '\'']) && (prefix == "b" || !rest.starts_with('\''));
            (plain || prefix.ends_with('r') && quoted).then_some(prefix.len())
        })
        .unwrap_or(0)
}

fn raw_or_plain(text: &str, raw: bool) -> usize {
    if !raw {
        return if text.starts_with('\'') { char_or_lifetime(text) } else { string(text) };
    }
    let hashes = text.len() - text.trim_start_matches('#').len();
    let end = format!("\"{}", "#".repeat(hashes));
    text[hashes + 1..].find(&end).map_or(text.len(), |at| hashes + 1 + at + end.len())
}

fn string(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            '"' if !escaped => return at + 1,
            _ => escaped = c == '\\' && !escaped,
        }
    }
    text.len()
}

fn char_or_lifetime(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some((after, _))) => {
            text[after + 1..].find('\'').map_or(text.len(), |at| after + 1 + at + 1)
        }
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 1 + word_length(&text[1..]),
    }
}

/// What stands under the heading `title`, of any level, up to the next heading of level 1 or 2.
fn section<'a>(text: &'a str, title: &str) -> &'a str {
    let heading = format!("## {title}\n");
    let start = text.find(&heading).unwrap_or_else(|| panic!("no section {title:?}"));
    let rest = &text[start + heading.len()..];
    &rest[..rest.find("\n## ").unwrap_or(rest.len())]
}

/// The rows of the tables in `text`, without head and rule.
fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    let rows = text.lines().filter_map(|line| line.strip_prefix('|')?.trim_end().strip_suffix('|'));
    rows.map(|row| row.split('|').map(str::trim).collect::<Vec<_>>()).skip(2)
}

fn backticked(text: &str) -> BTreeSet<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The names under every `[dependencies]`, those of a target included.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let mut inside = false;
    let mut names = BTreeSet::new();
    for line in manifest.lines() {
        if let Some(table) = line.strip_prefix('[') {
            let table = table.trim_end_matches(']');
            inside = table == "dependencies" || table.ends_with(".dependencies");
        } else if inside && let Some((name, _)) = line.split_once('=') {
            let name = name.split('.').next().unwrap_or_default();
            names.insert(name.trim().to_owned());
        }
    }
    names
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The Rust files under a directory of the project, by path, with their text.
fn sources(directory: &str) -> BTreeMap<String, String> {
    let mut files = Vec::new();
    walk(&root().join(directory), &mut files);
    let rust = files.into_iter().filter(|path| path.extension().is_some_and(|end| end == "rs"));
    rust.map(|path| {
        let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        let text = read(&name);
        (name, text)
    })
    .collect()
}

/// What git tracks; outside of a clone, what is there.
fn tracked() -> Vec<PathBuf> {
    let listed = Command::new("git").arg("-C").arg(root()).args(["ls-files", "-z"]).output();
    if let Ok(output) = listed
        && output.status.success()
        && !output.stdout.is_empty()
    {
        let names = String::from_utf8(output.stdout).unwrap();
        return names.split_terminator('\0').map(PathBuf::from).collect();
    }
    let mut files = Vec::new();
    walk(root(), &mut files);
    files
}

/// Every file under `directory`, build output and what git keeps left out.
fn walk(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap_or_default().to_str().unwrap_or_default();
        match path.is_dir() {
            true if ["target", ".git", "corpus", "artifacts"].contains(&name) => {}
            true => walk(&path, files),
            false => files.push(path),
        }
    }
}

/// The checker itself, on violations planted in samples.
mod checker {
    use super::*;

    const TABLE: &str = "\
# House
## Layers
Some words.

| module | what it is | may import |
|---|---|---|
| `wire/` | bytes | nothing of ours; bytes, nom |
| `url` | URLs | nothing of ours |
| `broker/` | core | wire, url |
| `node/` | I/O | all above |
| `service/` | subsystems | node, wire |
| `bin/nlbus/` | command | the public API |

## Next
";

    #[track_caller]
    fn finds(path: &str, text: &str, expected: &[(usize, &str)]) {
        let found = imports(path, text, &Layers::parse(TABLE));
        let lines: Vec<_> =
            found.iter().map(|finding| finding.split(": ").next().unwrap()).collect();
        let expected_lines: Vec<_> =
            expected.iter().map(|(line, _)| format!("{path}:{line}")).collect();
        assert_eq!(lines, expected_lines, "{found:#?}");
        for (finding, (_, target)) in found.iter().zip(expected) {
            assert!(finding.contains(&format!("imports `{target}`")), "{finding}");
        }
    }

    #[test]
    fn the_table_is_read_with_all_above_and_with_names() {
        let layers = Layers::parse(TABLE).0;
        let of = |module: &str| layers[module].iter().map(String::as_str).collect::<Vec<_>>();
        assert_eq!(of("wire"), [""; 0]);
        assert_eq!(of("broker"), ["url", "wire"]);
        assert_eq!(of("node"), ["broker", "url", "wire"]);
        assert_eq!(of("service"), ["node", "wire"]);
    }

    #[test]
    fn what_the_table_allows_is_not_found() {
        finds("src/broker/link.rs", "use crate::wire::Key;\nuse super::Broker;", &[]);
        finds("src/node/mod.rs", "use crate::{broker::Broker, wire};\nuse self::pool::Pool;", &[]);
        finds("src/lib.rs", "pub use crate::service::Service;", &[]);
        finds("src/bin/nlbus/main.rs", "use crate::show::Args;\nuse nlbus::node::Node;", &[]);
    }

    #[test]
    fn a_planted_import_is_found_in_each_of_its_forms() {
        finds("src/broker/mod.rs", "\nuse crate::node::Node;", &[(2, "node")]);
        finds("src/broker/mod.rs", "pub(crate) use crate::node;", &[(1, "node")]);
        finds(
            "src/broker/mod.rs",
            "use crate::{wire::{Key, Head},\n node::{self, A}};",
            &[(1, "node"), (1, "node")],
        );
        finds("src/broker/mod.rs", "fn f(n: &crate::node::Node) {}", &[(1, "node")]);
        finds("src/broker/mod.rs", "use super::node::Node as N;", &[(1, "node")]);
        finds("src/broker/link.rs", "use super::super::node::Node;", &[(1, "node")]);
        finds("src/broker/a/mod.rs", "use super::{Broker, super::node::*};", &[(1, "node")]);
        finds(
            "src/url.rs",
            "mod tests {\n use super::*;\n use super::super::wire::Key;\n}",
            &[(3, "wire")],
        );
        finds("src/url.rs", "mod a { mod b {} use super::super::wire; }", &[(1, "wire")]);
        finds("src/wire/mod.rs", "macro_rules! m { () => { $crate::url::f() } }", &[(1, "url")]);
    }

    #[test]
    fn a_name_at_the_root_of_the_crate_is_no_way_around_the_table() {
        finds("src/wire/mod.rs", "use crate::Endpoint;", &[(1, "Endpoint")]);
    }

    #[test]
    fn comments_and_literals_name_nothing() {
        finds(
            "src/wire/mod.rs",
            r####"
            //! See [crate::node].
            /* crate::node /* crate::node */ crate::node */
            const A: &str = "crate::node \" crate::node";
            const B: &str = r#"crate::node " crate::node"#;
            const C: &[u8] = b"crate::node";
            const D: char = '"';
            const E: [char; 2] = ['\'', '\u{22}'];
            fn f<'a>(g: &'a str) -> &'a str { g }
            use crate::node;
            "####,
            &[(10, "node")],
        );
    }

    #[test]
    fn words_are_found_whole_and_with_their_line() {
        let text = "let a = unsafe_code;\n// unsafe\nlet b = unsafe { 1 };\nlet c = \"unsafe\";";
        assert_eq!(lines_with(text, "unsafe"), [3]);
        assert_eq!(lines_with("time::sleep(d);\nsleep_until(t);", "sleep"), [1]);
        assert_eq!(lines_with("use nom::Parser as _;", "nom"), [1]);
        let path = ["thread", "::", "sleep"];
        assert_eq!(lines_with_path("thread::spawn(f);\nstd::thread::sleep(d)", &path), [2]);
        assert_eq!(lines_with_path("tokio::time::sleep(d)", &path), [0; 0]);
    }

    #[test]
    fn dependencies_of_every_target_are_read_and_those_of_tests_are_not() {
        let manifest = "[package]\nname = \"a\"\n[dependencies]\nbytes = \"1\"\n# clap = 1\n\n\
                        serde.workspace = true\n[dev-dependencies]\nproptest = \"1\"\n\
                        [target.'cfg(unix)'.dependencies]\nrustix = { version = \"1\" }\n";
        let found = dependencies(manifest);
        assert_eq!(found.iter().filter(|name| !name.starts_with('#')).count(), 3, "{found:?}");
    }

    #[test]
    fn a_table_row_gives_its_cells_and_a_section_ends_at_the_next() {
        let text = "## A\n| h |\n|---|\n| `x` | why |\n\n## B\n| h |\n|---|\n| `y` |\n";
        assert_eq!(rows(section(text, "A")).collect::<Vec<_>>(), [vec!["`x`", "why"]]);
        assert_eq!(backticked("`a` and `b`"), BTreeSet::from(["a", "b"]));
    }
}
