//! Compares token ids of the published tokenizer with those of transformers. The tokenizer is not
//! part of the repository: `scripts/test` fetches it, and runs this test.

use std::fs;
use std::path::PathBuf;

use runtime::inputs::Prompter;
use serde_json::Value;
use tests::golden::workspace;

/// Names the folder with the published `tokenizer.json`.
const FOLDER: &str = "UMT5_TOKENIZER";

#[test]
#[ignore = "needs the published tokenizer, in the folder that UMT5_TOKENIZER names"]
fn ids_of_the_published_tokenizer_are_those_of_transformers() {
    let folder = PathBuf::from(std::env::var_os(FOLDER).expect("UMT5_TOKENIZER names a folder"));
    let prompter = Prompter::open(&folder.join("tokenizer.json")).unwrap();
    let text = fs::read_to_string(workspace().join("tests/umt5/ids.json")).unwrap();
    let stored: Value = serde_json::from_str(&text).unwrap();
    let cases = stored["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 20);
    let mut wrong = Vec::new();
    for case in cases {
        let prompt = case["prompt"].as_str().unwrap();
        let ids = case["ids"].as_array().unwrap().iter();
        let want: Vec<i64> = ids.map(|id| id.as_i64().unwrap()).collect();
        let got = prompter.encode(prompt).unwrap().ids;
        if got != want {
            wrong.push(format!("{prompt:?}: wanted {want:?}, got {got:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
