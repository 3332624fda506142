//! The models and engines that a user names: their hashes, and whether they fit each other and the
//! machine.

use std::path::Path;

use engines::backend::tensorrt::Flavour;
use engines::backend::tensorrt::engine_list::{self, EngineList, Engines, Here};
use engines::cancel::Cancel;
use engines::error_kind::ErrorKind;
use engines::installed;
use engines::manifest::Models;

use super::report::Line;
use crate::planner::found::Machine;

/// Checks an export, and a folder of engines for it.
pub(super) fn lines(
    folder: &Path,
    engines_folder: Option<&Path>,
    machine: &Machine,
    cancel: &Cancel,
) -> Vec<Line> {
    let models = match Models::open_until(folder, cancel) {
        Ok(models) => models,
        Err(error) => {
            let remedy = "export the models again with `avatar-export onnx`";
            return vec![Line::error(
                "models",
                error.to_string(),
                remedy,
                error.kind(),
            )];
        }
    };
    let mut lines = vec![opened(&models)];
    if let Some(folder) = engines_folder {
        lines.extend(engines(folder, &models, machine));
    }
    lines
}

fn opened(models: &Models) -> Line {
    let manifest = models.manifest();
    let bytes: u64 = manifest.data.iter().map(|d| d.file.bytes).sum();
    let text = format!(
        "{}: {} components, recipe {}, {:.1} GB of weights, every hash is right",
        models.dir().display(),
        manifest.components.len(),
        models.recipe(),
        bytes as f64 / 1e9
    );
    Line::ok("models", text)
}

/// Checks a folder of engines against the models, and then against the machine.
fn engines(folder: &Path, models: &Models, machine: &Machine) -> Vec<Line> {
    let remedy = "build the engines again with `avatar-export build`";
    let path = folder.join(engine_list::FILE);
    let read = std::fs::read_to_string(&path).map_err(|e| e.to_string());
    let list = match read.and_then(|text| engine_list::parse(&text)) {
        Ok(list) => list,
        Err(reason) => {
            let text = format!("{}: {reason}", path.display());
            return vec![Line::error("engines", text, remedy, ErrorKind::Model)];
        }
    };
    let claimed = Here {
        flavour: list.flavour,
        version: list.version.clone(),
        sm: list.sm,
    };
    let (has, lacks) = list.covers(models);
    let wanted = |name: &str| has.is_empty() || has.contains(name);
    let checked = match Engines::open(folder, models, &claimed, &wanted) {
        Ok(_) => {
            let (list, all) = (words(&list), has.len() + lacks.len());
            let text = format!(
                "{}: {list} run {} of {all} components, every hash is right",
                folder.display(),
                has.len()
            );
            Line::ok("engines", text)
        }
        Err(error) => Line::error("engines", error.to_string(), remedy, error.kind()),
    };
    let version = installed::tensorrt().and_then(|(_, found)| found.ok());
    let sms: Vec<u32> = machine.cards.iter().map(|c| c.sm).collect();
    let differs = differs(&list, Flavour::BUILT, version.map(|v| v.version), &sms);
    let foreign = differs.map(|text| Line::warning("engines here", text, remedy));
    [Some(checked), foreign].into_iter().flatten().collect()
}

fn words(list: &EngineList) -> String {
    let (engines, flavour, version, sm) =
        (list.engines.len(), list.flavour, &list.version, list.sm);
    format!(
        "{engines} engines of {flavour} {version} for SM {}.{}",
        sm / 10,
        sm % 10
    )
}

/// Says why this program and machine cannot run the engines, if they cannot.
fn differs(
    list: &EngineList,
    built: Option<Flavour>,
    version: Option<String>,
    sms: &[u32],
) -> Option<String> {
    let (wanted, sm) = (list.flavour, list.sm);
    if built != Some(wanted) {
        let built = built.map_or("without TensorRT".to_owned(), |b| format!("with {b}"));
        return Some(format!(
            "they want {wanted}; this program was built {built}"
        ));
    }
    let Some(version) = version else {
        return Some(format!("the library {wanted} cannot be loaded"));
    };
    if version != list.version {
        let text = format!(
            "they are of {wanted} {}; this machine has {version}",
            list.version
        );
        return Some(text);
    }
    if sms.is_empty() {
        return Some("this machine has no NVIDIA device that runs them".to_owned());
    }
    let other = sms.iter().position(|have| *have != sm)?;
    Some(format!(
        "they are for SM {}.{}; cuda:{other} has SM {}.{}",
        sm / 10,
        sm % 10,
        sms[other] / 10,
        sms[other] % 10
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use engines::recipe::Recipe;

    #[test]
    fn engines_of_another_program_library_or_card_are_told_apart() {
        let list = EngineList {
            format: engine_list::FORMAT.to_owned(),
            flavour: Flavour::Rtx,
            version: "1.7.1".to_owned(),
            sm: 89,
            recipe: Recipe::Bf16,
            command: "avatar-export build".to_owned(),
            engines: Vec::new(),
        };
        let (rtx, right) = (Some(Flavour::Rtx), Some("1.7.1".to_owned()));
        let cases = [
            (None, right.clone(), &[89][..], "built without TensorRT"),
            (
                Some(Flavour::Enterprise),
                right.clone(),
                &[89],
                "built with tensorrt",
            ),
            (rtx, None, &[89], "cannot be loaded"),
            (
                rtx,
                Some("1.6.0".to_owned()),
                &[89],
                "this machine has 1.6.0",
            ),
            (rtx, right.clone(), &[], "no NVIDIA device"),
            (rtx, right.clone(), &[89, 120], "cuda:1 has SM 12.0"),
        ];
        for (built, version, sms, want) in cases {
            let text = differs(&list, built, version, sms).unwrap();
            assert!(text.contains(want), "{text}");
        }
        assert_eq!(differs(&list, rtx, right, &[89, 89]), None);
    }
}
