//! `--copy-to REGION`, several times, each with the options that follow it.

use anyhow::Result;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, value_parser};

use super::Failure;
use crate::copy::KeyChoice;

const REGION: &str = "copy_to";
const KEY: &str = "key";
const ENCRYPT: &str = "encrypt";
const PLAIN: &str = "unencrypted";
const KEEP: &str = "keep_copies";

/// What was said of copies, in the order it was said.
#[derive(Default)]
pub struct CopyToArgs {
    said: Vec<(usize, Word)>,
}

/// One option.
#[derive(Clone)]
enum Word {
    To(String),
    Key(KeyChoice),
    Keep(u32),
}

/// Where copies are to be made, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The region, as it was named.
    pub region: String,
    /// Under which key.
    pub key: KeyChoice,
    /// How many of a volume stay; none: all.
    pub keep: Option<u32>,
}

impl CopyToArgs {
    /// Each region with what was said of it.
    pub fn wanted(&self) -> Result<Vec<Wanted>> {
        let mut wanted: Vec<Wanted> = Vec::new();
        for (_, word) in &self.said {
            let last = wanted.last_mut();
            match (word.clone(), last) {
                (Word::To(region), _) => {
                    wanted.push(Wanted { region, key: KeyChoice::AsSource, keep: None });
                }
                (Word::Key(key), Some(last)) if last.key == KeyChoice::AsSource => last.key = key,
                (Word::Key(_), Some(last)) => {
                    let message = format!("the key of the copies to {} is said twice", last.region);
                    return Err(Failure::usage(message));
                }
                (Word::Keep(keep), Some(last)) if last.keep.is_none() => last.keep = Some(keep),
                (Word::Keep(_), Some(last)) => {
                    let message = format!("--keep-copies of the copies to {} is given twice", last.region);
                    return Err(Failure::usage(message));
                }
                (_, None) => {
                    let message =
                        "--key, --encrypt, --unencrypted and --keep-copies are of the --copy-to before them";
                    return Err(Failure::usage(message));
                }
            }
        }
        Ok(wanted)
    }
}

impl Args for CopyToArgs {
    fn augment_args(command: Command) -> Command {
        let option = |id: &'static str, long: &'static str, value: &'static str, help: &'static str| {
            Arg::new(id).long(long).value_name(value).help(help).action(ArgAction::Append)
        };
        // Options without a value whose places are known.
        let flag = |id: &'static str, help: &'static str| {
            Arg::new(id)
                .long(id)
                .help(help)
                .action(ArgAction::Append)
                .num_args(0)
                .default_missing_value("true")
        };
        command
            .arg(option(REGION, "copy-to", "REGION", "Copy each snapshot to this region; may be given again, each with the options that follow it"))
            .arg(option(KEY, "key", "KEY", "The key of the copies to the region before it"))
            .arg(flag(ENCRYPT, "Encrypt the copies to the region before it under that region's default key"))
            .arg(flag(PLAIN, "Leave the copies to the region before it plain; those of encrypted snapshots are refused"))
            .arg(
                option(KEEP, "keep-copies", "N", "So many copies of each volume stay in the region before it, the newest; all, if it is not said")
                    .value_parser(value_parser!(u32).range(1..=100_000)),
            )
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for CopyToArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut args = Self::default();
        args.update_from_arg_matches(matches)?;
        Ok(args)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        let texts = |id: &str| {
            let places = matches.indices_of(id).into_iter().flatten();
            let texts = matches.get_many::<String>(id).into_iter().flatten().cloned();
            places.zip(texts).collect::<Vec<_>>()
        };
        self.said.extend(texts(REGION).into_iter().map(|(at, region)| (at, Word::To(region))));
        self.said.extend(texts(KEY).into_iter().map(|(at, key)| (at, Word::Key(KeyChoice::Named(key)))));
        self.said.extend(texts(ENCRYPT).into_iter().map(|(at, _)| (at, Word::Key(KeyChoice::Default))));
        self.said.extend(texts(PLAIN).into_iter().map(|(at, _)| (at, Word::Key(KeyChoice::Plain))));
        let places = matches.indices_of(KEEP).into_iter().flatten();
        let numbers = matches.get_many::<u32>(KEEP).into_iter().flatten();
        self.said.extend(places.zip(numbers).map(|(at, keep)| (at, Word::Keep(*keep))));
        self.said.sort_by_key(|(at, _)| *at);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Vec<Wanted>> {
        let command = CopyToArgs::augment_args(Command::new("create").no_binary_name(true));
        let matches = command.try_get_matches_from(words)?;
        CopyToArgs::from_arg_matches(&matches)?.wanted()
    }

    fn wanted(region: &str, key: KeyChoice, keep: Option<u32>) -> Wanted {
        Wanted { region: region.into(), key, keep }
    }

    // X7
    #[test]
    fn each_region_has_the_options_that_follow_it() {
        assert_eq!(parse(&[]).unwrap(), []);
        let all = "--copy-to south --keep-copies 7 --key team --copy-to=west --unencrypted --copy-to east \
                   --encrypt --keep-copies 1 --copy-to ./north";
        let words: Vec<_> = all.split_whitespace().collect();
        assert_eq!(
            parse(&words).unwrap(),
            [
                wanted("south", KeyChoice::Named("team".into()), Some(7)),
                wanted("west", KeyChoice::Plain, None),
                wanted("east", KeyChoice::Default, Some(1)),
                wanted("./north", KeyChoice::AsSource, None),
            ]
        );
        for (words, why) in [
            ("--key team", "of the --copy-to before them"),
            ("--keep-copies 7 --copy-to south", "of the --copy-to before them"),
            ("--encrypt --copy-to south", "of the --copy-to before them"),
            ("--copy-to south --key a --key b", "said twice"),
            ("--copy-to south --encrypt --unencrypted", "said twice"),
            ("--copy-to south --keep-copies 1 --keep-copies 2", "given twice"),
            ("--copy-to south --keep-copies 0", "0"),
        ] {
            let words: Vec<_> = words.split_whitespace().collect();
            let refused = parse(&words).unwrap_err().to_string();
            assert!(refused.contains(why), "{words:?}: {refused}");
        }
    }
}
