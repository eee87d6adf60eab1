//! The storage that dead letters are written to or read from, and whether two of them overlap.

use std::path::{Path, PathBuf};

use crate::record::StreamId;

/// Identifies the storage behind a sink or a source of dead letters.
///
/// If a replay wrote into the storage that it reads, and removed dead letters from there after writing, it
/// would remove its own copies. A [`Replay`](crate::replay::Replay) therefore refuses a sink whose storage
/// [overlaps](Storage::overlaps) that of its source.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Storage {
    /// A file, and the files that the sink starts after a failed write (`<path>.1`).
    File(PathBuf),
    /// A Kinesis stream.
    Stream(StreamId),
    /// An SQS queue, by its URL.
    Queue(String),
    /// An SNS topic, by its ARN.
    Topic(String),
    /// The objects of an S3 bucket whose keys begin with a prefix.
    Objects {
        /// The bucket.
        bucket: String,
        /// The prefix; empty for all objects of the bucket.
        prefix: String,
    },
    /// Any other storage, by the name of its sink or source.
    Named(String),
}

impl Storage {
    /// Returns whether a dead letter that is written to one storage can be read from the other, or replace
    /// one there.
    ///
    /// If two names may denote the same storage and redrive cannot tell, this returns true.
    pub fn overlaps(&self, other: &Storage) -> bool {
        match (self, other) {
            (Storage::File(a), Storage::File(b)) => files_overlap(a, b),
            (Storage::Stream(a), Storage::Stream(b)) => {
                a.name() == b.name() && (a == b || a.arn().is_none() || b.arn().is_none())
            }
            (Storage::Queue(a), Storage::Queue(b)) => queues_overlap(a, b),
            (
                Storage::Objects {
                    bucket: a,
                    prefix: of_a,
                },
                Storage::Objects {
                    bucket: b,
                    prefix: of_b,
                },
            ) => a == b && (of_a.starts_with(of_b.as_str()) || of_b.starts_with(of_a.as_str())),
            (a, b) => a == b,
        }
    }
}

/// Returns true if both paths are of the same file, or if one is a successor file of the other.
fn files_overlap(a: &Path, b: &Path) -> bool {
    let (base_a, base_b) = (followed(a), followed(b));
    same_file(a, b) || base_a.is_some_and(|a| same_file(&a, b)) || base_b.is_some_and(|b| same_file(a, &b))
}

/// Returns the path whose successor this path is: `<path>` for `<path>.7`.
fn followed(path: &Path) -> Option<PathBuf> {
    let number = path.extension()?.to_str()?;
    number.parse::<u64>().is_ok().then(|| path.with_extension(""))
}

fn same_file(a: &Path, b: &Path) -> bool {
    a == b || resolved(a) == resolved(b) || is_hard_link(a, b)
}

/// Returns the path without symbolic links. If the file does not exist yet, only its folder is resolved.
fn resolved(path: &Path) -> PathBuf {
    let in_folder = || {
        let folder = path.parent()?.canonicalize().ok()?;
        Some(folder.join(path.file_name()?))
    };
    let path_or = path.canonicalize().ok().or_else(in_folder);
    path_or.unwrap_or_else(|| path.to_path_buf())
}

#[cfg(unix)]
fn is_hard_link(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let inode = |path: &Path| {
        let found = std::fs::metadata(path).ok()?;
        Some((found.dev(), found.ino()))
    };
    inode(a).is_some_and(|of_a| inode(b) == Some(of_a))
}

#[cfg(not(unix))]
fn is_hard_link(_: &Path, _: &Path) -> bool {
    false
}

/// Returns whether both URLs are of one queue: the same account and name, and no two different regions.
///
/// A queue has several hosts: `sqs.REGION.amazonaws.com`, `REGION.queue.amazonaws.com`, and VPC endpoints.
fn queues_overlap(a: &str, b: &str) -> bool {
    fn split(url: &str) -> (&str, Vec<&str>) {
        let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
        let (host, path) = rest.split_once('/').unwrap_or(("", rest));
        let mut path: Vec<&str> = path.trim_end_matches('/').rsplit('/').take(2).collect();
        path.reverse();
        (host, path)
    }
    let ((host_a, path_a), (host_b, path_b)) = (split(a), split(b));
    let differ = |(a, b): (&str, &str)| a != b;
    path_a == path_b && !queue_region(host_a).zip(queue_region(host_b)).is_some_and(differ)
}

/// Returns the region in a queue's host, if AWS is the host.
fn queue_region(host: &str) -> Option<&str> {
    let host = host.split(':').next().unwrap_or(host);
    if !(host.ends_with(".amazonaws.com")
        || host.ends_with(".amazonaws.com.cn")
        || host.ends_with(".api.aws"))
    {
        return None;
    }
    let labels: Vec<&str> = host.split('.').collect();
    match labels
        .iter()
        .position(|label| *label == "sqs" || *label == "sqs-fips")
    {
        Some(place) => labels.get(place + 1).copied(),
        None if labels.first() == Some(&"queue") => Some("us-east-1"),
        None if labels.get(1) == Some(&"queue") => labels.first().copied(),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects(bucket: &str, prefix: &str) -> Storage {
        Storage::Objects {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
        }
    }

    /// Returns whether the storages overlap, after checking that both directions agree.
    fn overlap(a: &Storage, b: &Storage) -> bool {
        assert_eq!(a.overlaps(b), b.overlaps(a), "{a:?} {b:?}");
        a.overlaps(b)
    }

    #[test]
    fn prefixes_of_one_bucket_overlap_when_one_begins_the_other() {
        for (a, b) in [("p/", "p/"), ("", "p/"), ("p", "p2/"), ("p/", "p/orders/")] {
            assert!(overlap(&objects("b", a), &objects("b", b)), "{a} {b}");
            assert!(!overlap(&objects("b", a), &objects("c", b)), "{a} {b}");
        }
        assert!(!overlap(&objects("b", "p/"), &objects("b", "q/")));
        assert!(!overlap(&objects("b", ""), &Storage::Named("b".to_owned())));
    }

    #[test]
    fn streams_differ_by_name_or_by_arn() {
        let stream = |stream: &str| Storage::Stream(stream.into());
        let dlq = stream("dlq");
        let east = stream("arn:aws:kinesis:us-east-1:1:stream/dlq");
        let west = stream("arn:aws:kinesis:us-west-1:1:stream/dlq");
        assert!(overlap(&dlq, &dlq));
        assert!(overlap(&dlq, &east));
        assert!(overlap(&east, &east));
        assert!(!overlap(&east, &west));
        assert!(!overlap(&dlq, &stream("orders")));
    }

    #[test]
    fn a_queue_is_recognized_by_each_of_its_urls() {
        let queue = |url: &str| Storage::Queue(url.to_owned());
        let usual = queue("https://sqs.eu-west-1.amazonaws.com/111122223333/dlq");
        for same in [
            "https://sqs.eu-west-1.amazonaws.com/111122223333/dlq/",
            "https://eu-west-1.queue.amazonaws.com/111122223333/dlq",
            "https://vpce-1a.sqs.eu-west-1.vpce.amazonaws.com/111122223333/dlq",
            "http://localhost:4566/111122223333/dlq",
        ] {
            assert!(overlap(&usual, &queue(same)), "{same}");
        }
        for other in [
            "https://sqs.eu-west-2.amazonaws.com/111122223333/dlq",
            "https://queue.amazonaws.com/111122223333/dlq",
            "https://sqs.eu-west-1.amazonaws.com/444455556666/dlq",
            "https://sqs.eu-west-1.amazonaws.com/111122223333/dlq2",
        ] {
            assert!(!overlap(&usual, &queue(other)), "{other}");
        }
    }

    #[test]
    fn a_file_is_recognized_by_links_and_successors() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        let file = |name: &str| Storage::File(path(name));
        std::fs::write(path("a.jsonl"), "").expect("written");
        std::fs::hard_link(path("a.jsonl"), path("hard")).expect("linked");
        assert!(overlap(&file("a.jsonl"), &file("hard")));
        assert!(overlap(&file("a.jsonl"), &file("a.jsonl.2")));
        assert!(overlap(&file("new.jsonl"), &file("./new.jsonl")));
        assert!(!overlap(&file("a.jsonl"), &file("b.jsonl")));
        assert!(!overlap(&file("a.jsonl.1"), &file("a.jsonl.2")));
    }
}
