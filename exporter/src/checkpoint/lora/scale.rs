//! The strength of a LoRA. Each module has a factor `alpha / rank`. The rank is that of its
//! tensors. Alpha comes from the flags, from a tensor of the module, or from a statement beside the
//! tensors: PEFT's `adapter_config.json`, or the metadata of a safetensors file.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

use serde_json::Value;

use crate::checkpoint::error::{CheckpointError, LoraFault as Fault};

/// Name of PEFT's configuration beside `adapter_model.safetensors`.
const CONFIG: &str = "adapter_config.json";
/// Start of the names that PEFT gives to a folder's weights.
const PEFT_STEM: &str = "adapter_model.";
/// Metadata that holds PEFT's configuration as JSON. diffusers writes it.
const METADATA_CONFIG: &str = "lora_adapter_metadata";
/// Initialisations that change the base weights too, so that the two matrices are not the whole
/// LoRA.
const CHANGED_BASE: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

/// The strength of a LoRA.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum LoraScale {
    /// The file's own alpha over the rank of each module. A file without any alpha gets
    /// [`LoraScale::PUBLISHED`].
    #[default]
    Stored,
    /// This alpha over the rank of each module.
    Alpha(f64),
    /// `alpha / rank` as configured; the rank of the file may differ.
    AlphaRank {
        /// Numerator.
        alpha: f64,
        /// Denominator.
        rank: u32,
    },
    /// The factor itself.
    Scale(f64),
}

impl LoraScale {
    /// The factor of the published LoRA, whose file holds no alpha: alpha 64 and rank 128 of the
    /// reference's training configuration.
    pub const PUBLISHED: f64 = 64.0 / 128.0;

    /// Returns the factor that was given for a module of this rank, or `None` when the file
    /// decides.
    pub(super) fn given(self, rank: usize) -> Option<f64> {
        match self {
            Self::Stored => None,
            Self::Alpha(alpha) => Some(alpha / rank as f64),
            Self::AlphaRank { alpha, rank } => Some(alpha / f64::from(rank)),
            Self::Scale(factor) => Some(factor),
        }
    }
}

/// What a file beside the tensors says about alpha.
#[derive(Debug)]
pub(super) struct Statement {
    /// Name of the file or of the metadata, for messages.
    pub(super) source: String,
    /// The number, or the text in its place.
    alpha: Result<f64, String>,
    rank: Option<usize>,
    /// Whether the factor is `alpha / sqrt(rank)`.
    by_root: bool,
    alphas: Vec<(String, f64)>,
    ranks: Vec<(String, usize)>,
}

impl Statement {
    /// Returns the factor of a module whose tensors have this rank.
    pub(super) fn factor(&self, module: &str, rank: usize) -> Result<f64, Fault> {
        let stated = pattern(&self.ranks, module).or(self.rank);
        if let Some(stated) = stated.filter(|&r| r != rank) {
            return Err(Fault::RankStated {
                module: module.to_owned(),
                statement: self.source.clone(),
                stated,
                got: rank,
            });
        }
        let own = pattern(&self.alphas, module);
        let alpha = match (own, &self.alpha) {
            (Some(alpha), _) => alpha,
            (None, Ok(alpha)) => *alpha,
            (None, Err(got)) => return Err(self.fault("alpha", got.clone(), "a number")),
        };
        let rank = rank as f64;
        Ok(alpha / if self.by_root { rank.sqrt() } else { rank })
    }

    fn fault(&self, field: &str, got: String, want: &'static str) -> Fault {
        Fault::Config {
            statement: self.source.clone(),
            field: field.to_owned(),
            got,
            want,
        }
    }

    /// Makes a statement of two numbers that are written as text.
    fn plain(source: &str, alpha: &str, rank: Option<&String>) -> Self {
        Self {
            source: source.to_owned(),
            alpha: alpha.trim().parse().map_err(|_| format!("{alpha:?}")),
            // kohya writes "Dynamic" where ranks differ.
            rank: rank.and_then(|r| r.trim().parse().ok()),
            by_root: false,
            alphas: Vec::new(),
            ranks: Vec::new(),
        }
    }

    /// Reads PEFT's configuration. Every field whose value the merge cannot honour is a fault.
    fn config(source: &str, text: &str, faults: &mut Vec<Fault>) -> Option<Self> {
        let mut statement = Self::plain(source, "", None);
        let parsed = serde_json::from_str(text.trim_start_matches('\u{feff}'));
        let fields: serde_json::Map<String, Value> = match parsed {
            Ok(fields) => fields,
            Err(e) => {
                faults.push(statement.fault("its text", e.to_string(), "one JSON object"));
                return None;
            }
        };
        for (key, value) in &fields {
            // diffusers writes the name of the component before each field.
            let field = key.strip_prefix("transformer.").unwrap_or(key);
            if let Err(want) = statement.read(field, value) {
                faults.push(statement.fault(field, value.to_string(), want));
            }
        }
        if statement.alpha.is_err() {
            faults.push(statement.fault("lora_alpha", "missing".to_owned(), "a number"));
        }
        Some(statement)
    }

    /// Takes one field of PEFT's configuration, or returns what was wanted in its place.
    fn read(&mut self, field: &str, value: &Value) -> Result<(), &'static str> {
        match field {
            "r" => self.rank = Some(whole(value)?),
            "lora_alpha" => self.alpha = Ok(number(value)?),
            "use_rslora" => self.by_root = value.as_bool().unwrap_or_default(),
            "rank_pattern" => self.ranks = patterns(value, whole)?,
            "alpha_pattern" => self.alphas = patterns(value, number)?,
            "peft_type" if value.as_str() != Some("LORA") => return Err("\"LORA\""),
            "bias" if value.as_str() != Some("none") => return Err("\"none\""),
            "modules_to_save" | "layer_replication" | "target_parameters" if is_set(value) => {
                return Err("none: only pairs of matrices are merged");
            }
            "use_dora" if is_set(value) => return Err("false: DoRA is not merged"),
            "lora_bias" | "fan_in_fan_out" if is_set(value) => return Err("false"),
            "init_lora_weights" => {
                let name = value.as_str().unwrap_or_default().to_lowercase();
                if CHANGED_BASE.iter().any(|c| name.starts_with(c)) {
                    return Err("an initialisation that leaves the base weights as they are");
                }
            }
            _ if field.starts_with("use_") && is_set(value) => return Err("false"),
            _ => {}
        }
        Ok(())
    }
}

/// Tells whether a field holds more than nothing: not null, false or an empty list.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(items) => !items.is_empty(),
        _ => true,
    }
}

fn number(value: &Value) -> Result<f64, &'static str> {
    value.as_f64().ok_or("a number")
}

fn whole(value: &Value) -> Result<usize, &'static str> {
    let number = value.as_u64().and_then(|n| usize::try_from(n).ok());
    number.ok_or("a whole number")
}

/// Reads PEFT's table of module patterns. PEFT takes regular expressions; here a pattern is the
/// end of a module's name, or after `^` the whole name, and other expressions are refused.
fn patterns<T>(
    value: &Value,
    of: impl Fn(&Value) -> Result<T, &'static str>,
) -> Result<Vec<(String, T)>, &'static str> {
    let fields = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Object(fields) => fields,
        _ => return Err("an object"),
    };
    let entry = |(key, value): (&String, &Value)| {
        let name = key.strip_suffix('$').unwrap_or(key).replace("\\.", ".");
        let inner = name.strip_prefix('^').unwrap_or(&name);
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if !inner.chars().all(plain) {
            return Err("names of modules without expressions; give --lora-scale");
        }
        Ok((name, of(value)?))
    };
    fields.iter().map(entry).collect()
}

/// Returns the value of the first pattern that names `module`, as PEFT does.
fn pattern<T: Copy>(patterns: &[(String, T)], module: &str) -> Option<T> {
    let names = |name: &str| match name.strip_prefix('^') {
        Some(whole) => module == whole,
        None => module
            .strip_suffix(name)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.')),
    };
    let found = patterns.iter().find(|(name, _)| names(name));
    found.map(|&(_, value)| value)
}

/// Reads every statement about alpha that lies beside the tensors of `path` or in the metadata of
/// `files`. Adds to `faults` each setting that the merge cannot honour.
pub(super) fn statements<'p>(
    path: &Path,
    files: impl IntoIterator<Item = &'p Path>,
    faults: &mut Vec<Fault>,
) -> Result<Vec<Statement>, CheckpointError> {
    let mut found = Vec::new();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = match () {
        () if path.is_dir() => Some(path.join(CONFIG)),
        () if name.starts_with(PEFT_STEM) => Some(path.with_file_name(CONFIG)),
        () => None,
    };
    if let Some(config) = beside.filter(|c| c.is_file()) {
        let text = fs::read(&config).map_err(|e| unreadable(&config, e))?;
        let text = String::from_utf8_lossy(&text);
        found.extend(Statement::config(CONFIG, &text, faults));
    }
    for file in files {
        let metadata = metadata(file).map_err(|e| unreadable(file, e))?;
        if let Some(text) = metadata.get(METADATA_CONFIG) {
            let source = format!("metadata {METADATA_CONFIG}");
            found.extend(Statement::config(&source, text, faults));
        }
        for (alpha, rank) in [
            ("lora_alpha", "lora_rank"),
            ("ss_network_alpha", "ss_network_dim"),
        ] {
            if let Some(text) = metadata.get(alpha) {
                let source = format!("metadata {alpha}");
                found.push(Statement::plain(&source, text, metadata.get(rank)));
            }
        }
    }
    Ok(found)
}

fn unreadable(path: &Path, source: std::io::Error) -> CheckpointError {
    CheckpointError::Io {
        path: path.to_owned(),
        op: "read",
        source,
    }
}

/// Reads the metadata of a safetensors file that was checked before. A file of another format has
/// none.
fn metadata(path: &Path) -> std::io::Result<BTreeMap<String, String>> {
    #[derive(Default, serde::Deserialize)]
    struct Header {
        #[serde(default, rename = "__metadata__")]
        metadata: BTreeMap<String, Value>,
    }
    let mut file = File::open(path)?;
    let mut start = [0; 9];
    file.read_exact(&mut start)?;
    let [length @ .., brace] = start;
    if brace != b'{' {
        return Ok(BTreeMap::new());
    }
    let mut text = vec![brace];
    let rest = u64::from_le_bytes(length).saturating_sub(1);
    file.take(rest).read_to_end(&mut text)?;
    let header: Header = serde_json::from_slice(&text).unwrap_or_default();
    let texts = header.metadata.into_iter().map(|(key, value)| {
        // Some writers leave numbers as numbers, against the format.
        let text = value.as_str().map_or_else(|| value.to_string(), Into::into);
        (key, text)
    });
    Ok(texts.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> (Option<Statement>, Vec<String>) {
        let mut faults = Vec::new();
        let statement = Statement::config("c.json", text, &mut faults);
        (statement, faults.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_configuration_gives_the_factor_of_each_module() {
        for (text, module, rank, want) in [
            (r#"{"r":4,"lora_alpha":8}"#, "b.q", 4, 2.0),
            (r#"{"r":4,"lora_alpha":8,"use_rslora":true}"#, "b.q", 4, 4.0),
            (
                r#"{"transformer.r":4,"transformer.lora_alpha":8}"#,
                "b.q",
                4,
                2.0,
            ),
            (
                "\u{feff}{\"r\":4,\"lora_alpha\":8,\"alpha_pattern\":{\"b.q\":1,\"q\":6}}",
                "a.b.q",
                4,
                0.25,
            ),
            (
                r#"{"r":4,"lora_alpha":8,"alpha_pattern":{"b.q":1,"q":6}}"#,
                "ab.q",
                4,
                1.5,
            ),
            (
                r#"{"r":4,"lora_alpha":8,"rank_pattern":{"^b\\.q$":2}}"#,
                "b.q",
                2,
                4.0,
            ),
            (
                r#"{"r":4,"lora_alpha":8,"rank_pattern":{"^b.q":2}}"#,
                "a.b.q",
                4,
                2.0,
            ),
        ] {
            let (statement, faults) = config(text);
            assert_eq!(faults, Vec::<String>::new(), "{text}");
            assert_eq!(statement.unwrap().factor(module, rank), Ok(want), "{text}");
        }
        let (statement, _) = config(r#"{"r":4,"lora_alpha":8}"#);
        assert_eq!(
            statement.unwrap().factor("b.q", 2).unwrap_err().to_string(),
            "module b.q has rank 2 in the file, c.json says 4; give --lora-scale to decide"
        );
    }

    #[test]
    fn a_setting_that_the_merge_cannot_honour_is_named() {
        for (field, want) in [
            (
                r#""use_dora":true"#,
                "c.json: use_dora is true, wanted false: DoRA is not merged",
            ),
            (
                r#""bias":"all""#,
                "c.json: bias is \"all\", wanted \"none\"",
            ),
            (
                r#""modules_to_save":["head"]"#,
                "c.json: modules_to_save is [\"head\"], \
                 wanted none: only pairs of matrices are merged",
            ),
            (
                r#""peft_type":"LOHA""#,
                "c.json: peft_type is \"LOHA\", wanted \"LORA\"",
            ),
            (r#""use_new":true"#, "c.json: use_new is true, wanted false"),
            (
                r#""init_lora_weights":"pissa_niter_4""#,
                "c.json: init_lora_weights is \"pissa_niter_4\", \
                 wanted an initialisation that leaves the base weights as they are",
            ),
            (
                r#""alpha_pattern":{"b\\.\\d+":1}"#,
                "c.json: alpha_pattern is {\"b\\\\.\\\\d+\":1}, \
                 wanted names of modules without expressions; give --lora-scale",
            ),
        ] {
            let (_, faults) = config(&format!(r#"{{"r":4,"lora_alpha":8,{field}}}"#));
            assert_eq!(faults, [want]);
        }
        let (_, faults) = config(
            r#"{"r":4,"lora_alpha":8,"use_dora":false,"bias":"none","modules_to_save":null,
            "peft_type":"LORA","init_lora_weights":true,"target_modules":["q"],"rank_pattern":{}}"#,
        );
        assert_eq!(faults, Vec::<String>::new());
        assert_eq!(
            config(r#"{"r":4}"#).1,
            ["c.json: lora_alpha is missing, wanted a number"]
        );
        assert!(config("{").1[0].starts_with("c.json: its text is EOF"));
    }
}
