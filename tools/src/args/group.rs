//! Flags of `group …`.

use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand};

use crate::parse::{self, From};

/// `group …`.
#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    /// List all groups
    List,
    /// Show members and positions of groups, and how far they are behind
    Describe {
        /// Which groups [default: all]
        #[arg(value_name = "GROUP")]
        names: Vec<String>,
    },
    /// Move the positions of a group without members: says what would change, and changes it with --execute
    Reset(GroupResetArgs),
    /// Remove groups without members, with their positions
    Delete {
        /// Which groups
        #[arg(value_name = "GROUP", required = true)]
        names: Vec<String>,
        /// A group that does not exist is no reason to exit with 1
        #[arg(long)]
        if_exists: bool,
    },
}

/// `group reset`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("where").required(true))]
pub(crate) struct GroupResetArgs {
    /// Which group
    #[arg(value_name = "GROUP")]
    pub(crate) group: String,
    /// Where to go on: earliest, latest, an offset, or @ and a time (RFC 3339, or milliseconds since 1970)
    #[arg(long, value_name = "WHERE", value_parser = parse::from, group = "where")]
    pub(crate) to: Option<From>,
    /// Go on at the records of this long ago, such as 2h
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, group = "where")]
    pub(crate) by_duration: Option<Duration>,
    /// Remove the positions: the group begins as its consumers say
    #[arg(long, group = "where")]
    pub(crate) forget: bool,
    /// Only in this topic; may be given again [default: all that the group has positions in]
    #[arg(long, value_name = "TOPIC")]
    pub(crate) topic: Vec<String>,
    /// Only in this partition of each topic; may be given again [default: all]
    #[arg(long, short, value_name = "P")]
    pub(crate) partition: Vec<u32>,
    /// Change the positions, instead of saying what would change
    #[arg(long)]
    pub(crate) execute: bool,
}
