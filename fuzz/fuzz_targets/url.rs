//! A URL that parses is written to a text that parses to the same URL, and to the same text again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nlbus::url::BusUrl;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = str::from_utf8(data) else { return };
    let Ok(url) = text.parse::<BusUrl>() else { return };
    let written = url.to_string();
    let again: BusUrl = written.parse().expect("what was written parses");
    assert_eq!(again, url);
    assert_eq!(again.to_string(), written);
});
