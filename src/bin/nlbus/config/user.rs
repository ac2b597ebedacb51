//! Users and groups of this machine.

use std::fs;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// Where names of users are looked up.
const PASSWD: &str = "/etc/passwd";

/// Where names of groups are.
const GROUP: &str = "/etc/group";

/// A user, by number or by a name in `/etc/passwd`. Users of a directory service have to be given by
/// number: asking that service means running code of the C library's choice in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct User {
    pub(crate) id: u32,
}

/// A group, by number or by a name in `/etc/group`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) id: u32,
}

impl FromStr for User {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self { id: number(PASSWD, "user", text)? })
    }
}

impl FromStr for Group {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self { id: number(GROUP, "group", text)? })
    }
}

impl<'de> Deserialize<'de> for User {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

fn number(path: &str, what: &str, text: &str) -> Result<u32, String> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    let found = look_up(&fs::read_to_string(path).unwrap_or_default(), text);
    found.ok_or_else(|| format!("no {what} {text:?} in {path}; a {what} id is a number"))
}

/// The id of a user in the text of a passwd file (passwd(5)), or of a group in that of a group file
/// (group(5)): the third field of both.
fn look_up(table: &str, name: &str) -> Option<u32> {
    table.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (found, _, id) = (fields.next()?, fields.next()?, fields.next()?);
        if found == name { id.parse().ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::look_up;

    #[test]
    fn a_user_is_found_by_its_whole_name() {
        let passwd = "root:x:0:0::/:/bin/sh\n\nbroken\n+::::::\nbus:x:998:998::/:/bin/false";
        assert_eq!(look_up(passwd, "root"), Some(0));
        assert_eq!(look_up(passwd, "bus"), Some(998));
        for absent in ["bu", "broken", "", "+", "x"] {
            assert_eq!(look_up(passwd, absent), None, "{absent}");
        }
    }

    #[test]
    fn a_group_is_found_likewise() {
        let group = "root:x:0:\nbus:x:77:a,b";
        assert_eq!(look_up(group, "bus"), Some(77));
        assert_eq!(look_up(group, "a"), None);
    }
}
