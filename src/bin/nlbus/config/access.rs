//! The table `access`: who gets which rights.

use std::collections::HashMap;

use nlbus::broker::{Access, Names, Rights};
use nlbus::node::AccessList;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::user::User;

/// One row for each kind of peer, see [`AccessList`]. A row that is left out is as in its default.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct AccessRows {
    /// By the name in a verified certificate.
    name: HashMap<String, Row>,
    /// Other verified certificates.
    certified: Option<Row>,
    /// By user, on unix sockets.
    #[serde(deserialize_with = "users")]
    user: HashMap<User, Row>,
    /// The user that `serve` runs as, and root, on unix sockets.
    own: Option<Row>,
    /// Other users on unix sockets.
    others: Option<Row>,
    /// Plain TCP.
    anonymous: Option<Row>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    rights: Vec<Right>,
    /// Subsystems; left out, all.
    read: Option<Vec<String>>,
    /// Subsystems; left out, none, or all with `allow_write`.
    write: Option<Vec<String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Right {
    Use,
    Provide,
    Control,
}

impl AccessRows {
    /// The list that a node takes. Who may write is said by his row, or by `allow_write` for every row that
    /// does not say it.
    pub(crate) fn list(&self, allow_write: bool) -> AccessList {
        let unsaid = if allow_write { Names::All } else { Names::None };
        let of = |row: &Row| row.access(&unsaid);
        let mut list = AccessList::default();
        for (row, access) in [
            (&self.certified, &mut list.certified),
            (&self.own, &mut list.own),
            (&self.others, &mut list.others),
            (&self.anonymous, &mut list.anonymous),
        ] {
            match row {
                Some(row) => *access = of(row),
                None => access.write = unsaid.clone(),
            }
        }
        list.names = self.name.iter().map(|(name, row)| (name.clone(), of(row))).collect();
        list.users = self.user.iter().map(|(user, row)| (user.id, of(row))).collect();
        list
    }

    /// Whether somebody may have the subsystem `name` changed.
    pub(crate) fn lets_write(&self, name: &str, allow_write: bool) -> bool {
        let rows = [&self.certified, &self.own, &self.others, &self.anonymous];
        let mut rows =
            rows.into_iter().flatten().chain(self.name.values()).chain(self.user.values());
        allow_write || rows.any(|row| row.access(&Names::None).write.contains(name))
    }
}

impl Row {
    fn access(&self, write_unsaid: &Names) -> Access {
        let has = |right| self.rights.contains(&right);
        Access {
            rights: Rights {
                use_bus: has(Right::Use),
                provide: has(Right::Provide),
                control: has(Right::Control),
            },
            read: self.read.as_ref().map_or(Names::All, |names| set(names)),
            write: self.write.as_ref().map_or_else(|| write_unsaid.clone(), |names| set(names)),
        }
    }
}

fn set(names: &[String]) -> Names {
    match names {
        [] => Names::None,
        names if names.iter().any(|name| name == "*") => Names::All,
        names => Names::Only(names.into()),
    }
}

/// Reads the rows of users. Two names of one user id would leave open which row counts.
fn users<'de, D: Deserializer<'de>>(deserializer: D) -> Result<HashMap<User, Row>, D::Error> {
    struct Users;

    impl<'de> Visitor<'de> for Users {
        type Value = HashMap<User, Row>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a table for each user")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut users = HashMap::new();
            while let Some(user) = map.next_key::<User>()? {
                let id = user.id;
                if users.insert(user, map.next_value()?).is_some() {
                    return Err(A::Error::custom(format!("two rows are for user {id}")));
                }
            }
            Ok(users)
        }
    }

    deserializer.deserialize_map(Users)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str) -> AccessRows {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn nobody_may_write_unless_that_is_said() {
        let list = AccessRows::default().list(false);
        for access in [&list.certified, &list.own, &list.others, &list.anonymous] {
            assert_eq!(access.write, Names::None);
        }
        let rows = rows("own = { rights = [] }\nanonymous = { rights = [\"use\"], write = [] }");
        let list = rows.list(true);
        assert_eq!((list.own.write, list.others.write), (Names::All, Names::All));
        assert_eq!(list.anonymous.write, Names::None);
        assert_eq!(list.own.rights, Rights::NONE);
    }

    #[test]
    fn a_row_says_rights_and_subsystems_and_a_star_stands_for_all() {
        let rows = rows(
            "[name.\"a.test\"]\nrights = [\"use\", \"control\"]\nread = [\"route\"]\n\
             write = [\"x\", \"*\"]\n[user.12]\nrights = [\"provide\"]",
        );
        let list = rows.list(false);
        let access = &list.names["a.test"];
        assert_eq!(access.rights, Rights { use_bus: true, provide: false, control: true });
        assert_eq!(access.read, Names::Only(["route".to_owned()].into()));
        assert_eq!(access.write, Names::All);
        assert_eq!(list.users[&12].read, Names::All);
        assert!(rows.lets_write("generic", false));
    }

    #[test]
    fn writing_is_let_only_where_a_row_names_the_subsystem() {
        let rows = rows("certified = { rights = [\"use\"], write = [\"route\"] }");
        assert!(rows.lets_write("route", false));
        assert!(!rows.lets_write("generic", false));
        assert!(rows.lets_write("generic", true));
    }
}
