//! The rotary table against transformers; `data/rope.py` wrote the numbers.

use sconce_models::llama;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::tiny::{self, Tiny};

#[derive(Deserialize)]
struct Case {
    name: String,
    config: Map<String, Value>,
    inverse_frequencies: Vec<f64>,
    attention_factor: f64,
}

fn cases() -> Vec<Case> {
    serde_json::from_str(include_str!("data/rope.json")).expect("the data parse")
}

fn config(fields: &Map<String, Value>) -> llama::Config {
    let mut config = Tiny::default().config();
    config["head_dim"] = 64.into();
    config["max_position_embeddings"] = 131_072.into();
    for (field, value) in fields {
        config[field.as_str()] = value.clone();
    }
    tiny::read_config(&config).expect("a served configuration").1
}

#[test]
fn every_scaling_agrees_with_transformers() {
    for case in cases() {
        let table = config(&case.config).base.rope.table(301);
        for position in [0, 1, 7, 300] {
            let (cos, sin) = table[position * 64..][..64].split_at(32);
            for (i, frequency) in case.inverse_frequencies.iter().enumerate() {
                let angle = position as f64 * frequency;
                // The reference's frequencies are f32: 6e-8 of up to 300 radians.
                for (got, expected) in [(cos[i], angle.cos()), (sin[i], angle.sin())] {
                    let expected = expected * case.attention_factor;
                    let error = (f64::from(got) - expected).abs();
                    assert!(
                        error < 6e-5,
                        "{}: position {position}, frequency {i}: {got} for {expected}",
                        case.name
                    );
                }
            }
        }
    }
}

#[test]
fn the_older_spellings_mean_the_same() {
    for case in cases().iter().filter(|case| case.name != "default") {
        let new = config(&case.config);
        let mut scaling = case.config["rope_parameters"].clone();
        let fields = scaling.as_object_mut().expect("an object");
        let theta = fields.remove("rope_theta").expect("it is there");
        let kind = fields["rope_type"].clone();
        // As written for a while: both spellings at once.
        fields.insert("type".into(), kind);
        for both in [true, false] {
            if !both {
                let fields = scaling.as_object_mut().expect("an object");
                fields.remove("rope_type");
            }
            let mut old = Map::new();
            old.insert("rope_theta".into(), theta.clone());
            old.insert("rope_scaling".into(), scaling.clone());
            assert_eq!(config(&old), new, "{}", case.name);
        }
    }
}
