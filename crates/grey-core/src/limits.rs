//! Every bound of the replicated state in one place, related to one another where they depend on one another.

/// The most tenants that a cluster is founded with.
pub const FOUNDING_TENANTS: usize = 1_024;
/// The most tasks that one submission may list one by one.
pub const BATCH_TASKS: usize = 10_000;
/// The most tasks in one array.
pub const ARRAY_TASKS: u32 = 1_000_000;
/// The most bytes of one encoded submission.
pub const SUBMISSION_BYTES: usize = 4 * 1024 * 1024;
/// The most bytes of an output that travels inside a report.
pub const INLINE_OUTPUT_BYTES: usize = 4 * 1024;
/// The most attempts in one report: bounds the work of rebuilding a proof.
pub const REPORT_ATTEMPTS: usize = 4_096;
/// The most bytes of one encoded report.
pub const REPORT_BYTES: usize = 4 * 1024 * 1024;
/// The most placements in one plan.
pub const PLAN_PLACEMENTS: usize = 4_096;
/// The most tasks placed by one plan.
pub const PLAN_TASKS: u32 = 16_384;
/// The most bytes of one log entry. A submission or a report fits with its header.
pub const ENTRY_BYTES: usize = 6 * 1024 * 1024;
/// Command words of a task.
pub const COMMAND_WORDS: usize = 4_096;
/// Bytes of command words together, and of environment variables together.
pub const COMMAND_BYTES: usize = 128 * 1024;
/// Environment variables of a task.
pub const ENVIRONMENT_VARIABLES: usize = 1_024;
/// Input files of a task.
pub const INPUT_FILES: usize = 1_024;
/// Stages of a job.
pub const STAGES: usize = 1_024;
/// What the stages of a job wait for and take from one another, altogether.
pub const STAGE_LINKS: usize = 8_192;
/// Files that a task may be given of what other tasks left.
pub const GATHERED_FILES: usize = 8_192;
/// Output patterns of a task.
pub const OUTPUT_PATTERNS: usize = 64;
/// Output files that an attempt may leave.
pub const OUTPUT_FILES: usize = 1_024;
/// Bytes of a name, a label's key or its value.
pub const NAME_BYTES: usize = 128;
/// Bytes of an idempotency key.
pub const KEY_BYTES: usize = 128;
/// Labels of a job, of a worker, or that a task asks of its worker.
pub const LABELS: usize = 32;
/// Kinds of devices that a worker has or a task asks for.
pub const DEVICE_KINDS: usize = 16;
/// Devices of one kind that a worker has.
pub const DEVICES: u32 = 1_024;
/// Bytes of the name of a kind of device.
pub const DEVICE_NAME_BYTES: usize = 32;
/// Bytes of the list of an array's items.
pub const ITEMS_BYTES: u64 = 256 * 1024 * 1024;
/// Bytes of a result's message.
pub const MESSAGE_BYTES: usize = 512;
/// The longest time-out: 30 days, in milliseconds.
pub const TIMEOUT_MS: u64 = 30 * 24 * 3_600 * 1_000;
/// The largest output limit of an attempt, in bytes.
pub const OUTPUT_LIMIT_BYTES: u64 = 1 << 40;
/// Totals of resources stay below this, so that products with weights fit into 128 bits.
pub const RESOURCE_TOTAL: u64 = 1 << 48;
/// Tasks of a tenant that wait or run.
pub const TENANT_QUEUED_TASKS: u64 = 2_000_000;
/// Tasks a second that a tenant's rate may allow.
pub const RATE_TASKS_PER_SECOND: u64 = 10_000_000;
/// Tasks that a tenant's rate may allow at once; an array of any size can fit.
pub const RATE_BURST_TASKS: u64 = 100_000_000;
/// Idempotency keys kept for a tenant; at the bound a new key is refused, none is evicted.
pub const TENANT_KEYS: u64 = 1_000_000;
/// How long an idempotency key is kept after its job has ended, in milliseconds.
pub const KEY_RETENTION_MS: u64 = 24 * 3_600 * 1_000;
/// Workers of a cluster.
pub const WORKERS: usize = 10_000;
/// Servers of a cluster, those that enter or leave included.
pub const SERVERS: usize = 64;
/// Bytes of an address that is dialled.
pub const ADDRESS_BYTES: usize = 280;
/// Bytes of a certificate of a proof key.
pub const CERTIFICATE_BYTES: usize = 4 * 1024;
/// Certificates of its proof key that are kept of a node.
pub const NODE_CERTIFICATES: usize = 8;
/// Certificates of proof keys that are kept, those of forgotten nodes included: twice as many as a full cluster's.
pub const CERTIFICATES: usize = 2 * NODE_CERTIFICATES * (WORKERS + SERVERS);
/// Join tokens that are good at once.
pub const JOIN_TOKENS: usize = 1_024;
/// The longest that a join token is good: 30 days, in milliseconds.
pub const JOIN_TOKEN_MS: u64 = 30 * 24 * 3_600 * 1_000;
/// Tokens of the client API.
pub const TOKENS: usize = 65_536;
/// Tokens of one tenant, and of none.
pub const TENANT_TOKENS: usize = 1_024;
/// The longest that a token is good: ten years, in milliseconds.
pub const TOKEN_MS: u64 = 10 * 366 * 24 * 3_600 * 1_000;
/// The longest that an issuing key is good: a year and a day, in milliseconds.
pub const AUTHORITY_MS: u64 = 366 * 24 * 3_600 * 1_000;
/// Answered challenges that are remembered.
pub const USED_NONCES: usize = 65_536;
/// How long an answered challenge is remembered, in milliseconds: ten times as long as one may be answered.
pub const NONCE_KEPT_MS: u64 = 10 * 60 * 1_000;
/// Expired tokens and challenges that one entry forgets at most.
pub const IDENTITIES_SWEPT: usize = 256;
/// How far job and task numbers go on behind those that are known, when a cluster goes on without a part of its log.
pub const NUMBERS_SKIPPED: u64 = 1_000_000_000;
/// A tenant's weight in thousandths.
pub const WEIGHT_MILLI: u32 = 1 << 20;
/// Attempts that one worker may hold, started or not.
pub const WORKER_SLOTS: u32 = 16_384;
/// The longest quarantine of a worker: a week, in milliseconds.
pub const QUARANTINE_MS: u64 = 7 * 24 * 3_600 * 1_000;
/// The longest time after which a worker's quarantines are forgotten: a year, in milliseconds.
pub const QUARANTINE_FORGET_MS: u64 = 365 * 24 * 3_600 * 1_000;
/// The longest step of cluster time between two entries, in milliseconds: a jump of a clock moves deadlines no further.
pub const TIME_STEP_MS: u64 = 10_000;
/// How long a task waits for each level of priority that it gains on later ones, in cluster milliseconds. A task of the
/// lowest priority goes before everything that is submitted 255 such steps after it.
pub const AGEING_STEP_MS: u64 = 60_000;
/// How long after an attempt's time-out the cluster asks its worker to end it, and how often again, in milliseconds.
pub const TIMEOUT_GRACE_MS: u64 = 30_000;
/// Back-off after a failure: first wait, in milliseconds; it doubles each time.
pub const BACKOFF_FIRST_MS: u64 = 100;
/// Back-off after a failure: longest wait, in milliseconds.
pub const BACKOFF_LONGEST_MS: u64 = 30_000;
/// Entries' effects on keys that one entry may expire, so that no entry sweeps without bound.
pub const EXPIRIES_PER_ENTRY: usize = 4_096;

const _: () = assert!(ENTRY_BYTES > SUBMISSION_BYTES && ENTRY_BYTES > REPORT_BYTES);
const _: () = assert!(REPORT_ATTEMPTS <= PLAN_TASKS as usize);
const _: () = assert!(RATE_BURST_TASKS >= ARRAY_TASKS as u64);
const _: () = assert!(QUARANTINE_MS <= QUARANTINE_FORGET_MS);
const _: () = assert!(BACKOFF_FIRST_MS < BACKOFF_LONGEST_MS);
