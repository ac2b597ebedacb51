//! Who may do what.

/// What a link may do on the bus itself (proto-spec/control.md, "Rights").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// Send, subscribe, discover.
    pub use_bus: bool,
    /// Provide subsystems.
    pub provide: bool,
    /// Connect, serve, shut down, stop.
    pub control: bool,
}

impl Rights {
    /// What a link from within the process has.
    pub const ALL: Self = Self { use_bus: true, provide: true, control: true };
    /// What a stranger has.
    pub const USE: Self = Self { use_bus: true, provide: false, control: false };
    /// Nothing.
    pub const NONE: Self = Self { use_bus: false, provide: false, control: false };
}

/// A set of subsystems, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Names {
    /// All of them.
    All,
    /// None of them.
    None,
    /// These.
    Only(Box<[String]>),
}

impl Names {
    /// Whether `name` is in the set.
    pub fn contains(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Only(names) => names.iter().any(|other| other == name),
        }
    }
}

/// What a link may do: on the bus, and with which subsystems.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// On the bus itself.
    pub rights: Rights,
    /// The subsystems that it may send to and hear from.
    pub read: Names,
    /// The subsystems that it may have changed: where a name has providers for changing as well as for
    /// reading only, it reaches the former.
    pub write: Names,
}

impl Access {
    /// Everything.
    pub const ALL: Self = Self { rights: Rights::ALL, read: Names::All, write: Names::All };

    /// Reading everything, with these rights on the bus.
    pub const fn reading(rights: Rights) -> Self {
        Self { rights, read: Names::All, write: Names::None }
    }
}
