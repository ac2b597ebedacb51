//! Users of this machine.

use std::fs;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// Where names of users are looked up.
const PASSWD: &str = "/etc/passwd";

/// A user, by number or by a name in `/etc/passwd`. Users of a directory service have to be given by
/// number: asking that service means running code of the C library's choice in this process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct User {
    pub(crate) id: u32,
}

impl<'de> Deserialize<'de> for User {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if let Ok(id) = text.parse() {
            return Ok(Self { id });
        }
        let passwd = fs::read_to_string(PASSWD).unwrap_or_default();
        let id = look_up(&passwd, &text).ok_or_else(|| {
            D::Error::custom(format!("no user {text:?} in {PASSWD}; a user id is a number"))
        })?;
        Ok(Self { id })
    }
}

/// The id of a user in the text of a passwd file (passwd(5)).
fn look_up(passwd: &str, name: &str) -> Option<u32> {
    passwd.lines().find_map(|line| {
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
}
