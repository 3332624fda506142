use std::path::PathBuf;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let r = exporter::export::Request {
        ckpt_dir: PathBuf::from(format!("{}/Wan2.2-S2V-14B", a[1])),
        lora: Some((
            PathBuf::from(format!("{}/LiveAvatar/liveavatar.safetensors", a[1])),
            exporter::checkpoint::LoraScale::Scale(a[3].parse().unwrap()),
        )),
        recipe: exporter::export::Recipe::Fp32,
        out: PathBuf::from(&a[2]),
    };
    match exporter::export::export(&r, &mut |_, _, _| {}) {
        Ok(r) => println!("{r:?}"),
        Err(e) => {
            eprintln!("error: {e}");
            std::process::exit(e.exit().code().into())
        }
    }
}
