//! Every bound on the wire and on what a host keeps, in one place.

/// Largest control frame (hello, report, assignment), bytes.
pub const CONTROL_FRAME_BYTES_MAX: usize = 64 * 1024;
/// Largest operator request or answer frame, bytes: the status of 50,000 hosts.
pub const OPERATOR_FRAME_BYTES_MAX: usize = 48 * 1024 * 1024;
/// Largest release manifest, bytes.
pub const MANIFEST_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Largest single artifact, bytes.
pub const ARTIFACT_BYTES_MAX: u64 = 64 * 1024 * 1024 * 1024;
/// Most files in one component.
pub const FILES_MAX: usize = 20_000;
/// Most components in one release, and most components one host reports.
pub const COMPONENTS_MAX: usize = 32;
/// Most smoke tests of one component.
pub const SMOKE_TESTS_MAX: usize = 32;
/// Most digests in one fetch request.
pub const FETCH_DIGESTS_MAX: usize = 1_000;
/// Longest free text a host may send (a smoke test's message, a cause), bytes.
pub const MESSAGE_BYTES_MAX: usize = 512;
/// Longest path inside a release, bytes.
pub const PATH_BYTES_MAX: usize = 1_024;
/// Most entries of an argv, and of labels on a host.
pub const ARGV_MAX: usize = 64;
/// Most labels on one host.
pub const LABELS_MAX: usize = 64;
/// Swap history kept per component in the ledger.
pub const HISTORY_MAX: usize = 32;
/// Most observers of one watch.
pub const OBSERVERS_MAX: usize = 32;
/// Most buckets of a histogram, the last one included.
pub const BUCKETS_MAX: usize = 64;
/// Longest name of a metric, and most patterns of one observer.
pub const METRIC_NAME_BYTES_MAX: usize = 64;
/// Most tasks of one release, and most that a host says of.
pub const TASKS_MAX: usize = 32;
/// Most intervals of one component's outages.
pub const OUTAGES_MAX: usize = 64;
/// Most names in `[vars]` that a host says of.
pub const VARS_MAX: usize = 128;
