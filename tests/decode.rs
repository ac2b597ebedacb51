//! `nlbus decode`, from the outside: what it prints for frames captured from the original, and what it
//! does with input that is cut, garbage, or no hex.

#![allow(clippy::unwrap_used)] // Helpers of tests, too, fail by panicking.

use assert_cmd::Command;
use serde_json::Value;

/// RTM_GETADDR as a client sends it.
const REQUEST: &str = "340000000f000000feff0000036d000003000100000000001c000000180000001600010302000000\
                       036d00000000000000000000";

/// NLMSG_ERROR -ENODEV that answers RTM_SETLINK.
const ERROR: &str = "500000000f000000feff00003b6d0000000000000300010038000000340000000200000002000000\
                     3b6d0000edffffff2000000013000506faff0000fb6c0000000000000f27000001000000\
                     01000000";

/// REGISTER with a secret of 16 bytes.
const REGISTER: &str = "480000000f00010000100000002000000300010000000000300000002c0000000e000000\
                        77000000880000000400000015000800f7cacae08330373ac99c4035e2c2ecff00000000";

/// SUBSCRIBE with two conditions.
const SUBSCRIBE: &str = "500000000f0001000301000002020000000000000000000038000000340000000e000000\
                         11000000220000000b000000100010000400000010000000ffff00001000100000000000\
                         0000000000000080";

/// RTM_NEWADDR as the kernel sends it, without an envelope.
const BARE: &str = "500000001400020002000000036d0000021880006e020000080001000a0b0c0d080002000a0b0c0d\
                    090003007665633000000000080008008000000014000600ffffffffffffffff5e4b06005e4b0600";

fn decode(arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("nlbus").unwrap();
    command.arg("decode").args(arguments);
    command
}

#[track_caller]
fn sound(arguments: &[&str], input: impl Into<Vec<u8>>) -> String {
    let assert = decode(arguments).write_stdin(input).assert().code(0).stderr("");
    String::from_utf8(assert.get_output().stdout.clone()).unwrap()
}

#[track_caller]
fn malformed(input: impl Into<Vec<u8>>) -> String {
    let assert = decode(&[]).write_stdin(input).assert().code(1).stderr("");
    String::from_utf8(assert.get_output().stdout.clone()).unwrap()
}

#[track_caller]
fn shows(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(text.contains(line), "no {line:?} in\n{text}");
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u32> = hex.chars().filter_map(|digit| digit.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

#[test]
fn a_request_is_explained_with_every_offset() {
    assert_eq!(
        sound(&[], REQUEST),
        "\
0x0000 frame length 52, type 15 (TRANSPORT), flags 0, hops 0, sequence 65534, pid 27907
0x0010   envelope dst 0x00010003 (subsystem #1), src 0 (port 0 of the link)
0x0018   attribute length 28, kind 0 (CDATA)
0x001c     message length 24, type 22 (RTM_GETADDR), flags 0x301 (REQUEST|DUMP), sequence 2, pid 27907
0x002c       fixed struct ifaddrmsg  00 00 00 00 00 00 00 00  |........|
"
    );
}

#[test]
fn hex_and_binary_of_the_same_frame_read_the_same() {
    let text = sound(&[], REQUEST);
    assert_eq!(sound(&[], bytes(REQUEST)), text);
    assert_eq!(sound(&["--format", "raw"], bytes(REQUEST)), text);
    assert_eq!(sound(&["--format", "hex", "-"], format!("0x{REQUEST}\n")), text);
    let spaced: String = bytes(REQUEST).iter().map(|byte| format!("{byte:02x} ")).collect();
    assert_eq!(sound(&[], spaced), text);
}

#[test]
fn a_file_is_read_like_standard_input() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes(REQUEST)).unwrap();
    assert_eq!(sound(&[file.path().to_str().unwrap()], ""), sound(&[], REQUEST));
}

#[test]
fn an_error_is_shown_with_its_symbol_and_the_request_it_answers() {
    shows(
        &sound(&[], ERROR),
        &[
            "0x001c     message length 52, type 2 (NLMSG_ERROR)",
            "0x002c       code value -19 (ENODEV)\n",
            "0x0030       request length 32, type 19 (RTM_SETLINK)",
        ],
    );
}

#[test]
fn the_text_of_an_extended_acknowledgement_is_shown_escaped() {
    // CAPPED and ACK_TLVS; the text is "no\x1b[2J".
    let message = "30000000 0200 0003 01000000 00000000 ffffffff 14000000 1000 0500 01000000 00000000 \
                   0b000100 6e6f1b5b324a00 00";
    let text = sound(&[], message);
    shows(&text, &["code value -1 (EPERM), text \"no\\u{1b}[2J\"", "type 16 (RTM_NEWLINK)"]);
    assert!(!text.contains('\u{1b}'));
}

#[test]
fn control_commands_are_named_and_their_attributes_typed() {
    shows(
        &sound(&[], SUBSCRIBE),
        &[
            "frame length 80, type 15 (TRANSPORT), flags 0x1 (CONTROL), hops 0",
            "command number 11 (subscribe), version 0",
            "kind 16 (key), at 4, key 0x10, mask 0xffff",
            "kind 16 (key), at 0, key 0, mask 0x80000000",
        ],
    );
}

#[test]
fn a_secret_is_printed_only_when_asked_for() {
    let text = sound(&[], REGISTER);
    shows(&text, &["attribute length 21, kind 8 (secret), value <16 bytes>\n"]);
    assert!(!text.contains("f7 ca"), "{text}");
    assert!(!sound(&["-j"], REGISTER).contains("f7ca"));
    shows(&sound(&["--secrets"], REGISTER), &["f7 ca ca e0"]);
    shows(&sound(&["-j", "--secrets"], REGISTER), &["f7cacae0"]);
}

#[test]
fn a_message_without_an_envelope_is_explained_too() {
    shows(
        &sound(&[], BARE),
        &[
            "0x0000 message length 80, type 20 (RTM_NEWADDR), flags 0x2 (MULTI)",
            "  attribute length 9, kind 3  76 65 63 30 00  |vec0.|\n",
        ],
    );
}

#[test]
fn frames_and_messages_may_stand_one_after_another() {
    let text = sound(&[], format!("{REQUEST}\n{BARE}\n{ERROR}"));
    shows(&text, &["0x0000 frame", "0x0034 message", "0x0084 frame"]);
}

#[test]
fn hops_and_flags_of_an_envelope_are_told_apart() {
    let text = sound(&[], REQUEST.replacen("0f000000", "0f003403", 1));
    shows(&text, &["flags 0x34 (RESPONSE|EXCEPTION|ASK), hops 3,"]);
}

#[test]
fn a_frame_that_is_cut_shows_what_is_there_and_where_it_ends() {
    let whole = bytes(ERROR);
    shows(
        &malformed(&whole[..0x34]),
        &[
            "envelope dst 0 (subscribers",
            "type 2 (NLMSG_ERROR)",
            "0x0034   fault reason the input ends inside a frame of 80 bytes: 28 missing\n",
        ],
    );
    for length in (1..whole.len()).step_by(3) {
        let text = String::from_utf8(
            decode(&["--format", "raw"])
                .write_stdin(&whole[..length])
                .assert()
                .code(1)
                .get_output()
                .stdout
                .clone(),
        );
        shows(&text.unwrap(), &["fault reason "]);
    }
}

#[test]
fn a_length_below_28_or_above_the_limit_ends_the_walk_with_its_reason() {
    shows(
        &malformed(REQUEST.replacen("34", "18", 1)),
        &["0x0000   fault reason the frame's length is below 28, bytes_to_the_end 52\n"],
    );
    shows(
        &malformed(REQUEST.replacen("34000000", "1c000100", 1)),
        &["0x0000   fault reason the frame's length is above the limit, bytes_to_the_end 52\n"],
    );
}

#[test]
fn garbage_is_a_fault_and_not_a_crash() {
    shows(&malformed([0xff; 100]), &["the input ends inside a message of 4294967295 bytes"]);
    shows(&malformed([0; 100]), &["the message's length is below 16"]);
    shows(&malformed([1, 2, 3]), &["the bytes end inside a header"]);
}

#[test]
fn nothing_is_explained_as_nothing() {
    assert_eq!(sound(&[], ""), "");
    assert_eq!(sound(&["-j"], "").trim_end(), "[\n]");
}

#[test]
fn text_that_is_no_hex_is_refused_with_its_line() {
    let assert = decode(&[]).write_stdin("3400\nhello").assert().code(1).stdout("");
    let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    shows(&stderr, &["the input is not hex", "line 2: 'h' is not a hex digit"]);
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let assert = decode(&["no/such/file"]).assert().code(5).stdout("");
    shows(&String::from_utf8_lossy(&assert.get_output().stderr), &["cannot read no/such/file"]);
}

#[test]
fn json_holds_the_same_tree() {
    let text = sound(&["-j"], format!("{REQUEST}{SUBSCRIBE}"));
    let json: Value = serde_json::from_str(&text).unwrap();
    let message = &json[0]["contents"][1]["contents"][0];
    assert_eq!(json[0]["what"], "frame");
    assert_eq!(json[0]["contents"][0]["dst"], 0x10003);
    assert_eq!(json[0]["contents"][0]["dst_name"], "subsystem #1");
    assert_eq!(message["what"], "message");
    assert_eq!(message["offset"], 28);
    assert_eq!(message["type_name"], "RTM_GETADDR");
    assert_eq!(message["contents"][0]["hex"], "0000000000000000");
    assert_eq!(json[1]["contents"][1]["contents"][0]["contents"][1]["mask"], 0xffff);
}

#[test]
fn changed_bytes_always_end_in_valid_json_and_a_documented_code() {
    let whole = bytes(&[REGISTER, ERROR, BARE].concat());
    // A step that visits fields of every kind; every byte is changed in the unit tests of the walk.
    for at in (0..whole.len()).step_by(5) {
        let mut changed = whole.clone();
        changed[at] ^= 0xff >> (at % 8);
        let output = decode(&["-j", "--format", "raw"]).write_stdin(changed).output().unwrap();
        assert!(matches!(output.status.code(), Some(0 | 1)), "byte {at}: {:?}", output.status);
        assert!(output.stderr.is_empty(), "byte {at}");
        serde_json::from_slice::<Value>(&output.stdout).unwrap();
    }
}
