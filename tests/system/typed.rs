//! Types of many shapes: the schema of each is enforced, lets a model write what the type
//! writes, and lets it write nothing that the type does not read.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Debug,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU32,
    time::Duration,
};

use schemars::JsonSchema;
use sconce::schema_of;
use sconce_grammar::{GrammarError, Source};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

#[path = "../../crates/grammar/tests/grammar/models.rs"]
#[expect(dead_code, reason = "the grammars' own tests use all of it")]
mod models;

use models::{Model, rng};

const WALKS: u64 = 16;
const MOST_TOKENS: usize = 600;

/// Each sample may be written, each other text may not, and whatever may be written is read.
fn check<T>(samples: &[T], never: &[&str])
where
    T: JsonSchema + Serialize + DeserializeOwned + PartialEq + Debug,
{
    let (model, schema) = (Model::bytes(), schema_of::<T>());
    let source = Source::JsonSchema(schema.clone());
    for sample in samples {
        let text = serde_json::to_string(sample).expect("it is JSON");
        assert!(model.accepts(&source, &text), "{text} in {schema:#}");
        assert_eq!(&serde_json::from_str::<T>(&text).expect("it reads itself"), sample);
    }
    for text in never {
        assert!(!model.accepts(&source, text), "{text} in {schema:#}");
    }
    let mut ended = 0;
    for seed in 0..WALKS {
        let mut constraint = model.constraint(&source);
        let Some(text) = model.draw(&mut constraint, &mut rng(seed), MOST_TOKENS) else { continue };
        ended += 1;
        if let Err(error) = serde_json::from_str::<T>(&text) {
            // A float's exponent may have any number of digits.
            assert!(error.to_string().contains("number out of range"), "{error}: {text}");
        }
    }
    assert!(ended > WALKS / 4, "only {ended} answers ended, {schema:#}");
}

#[test]
fn integers_keep_to_their_types() {
    check(&[0_u8, 255], &["256", "-1", "1.0", "01"]);
    check(&[0_u16, u16::MAX], &["65536", "-1"]);
    check(&[0_u32, u32::MAX], &["4294967296", "-1"]);
    check(&[0_u64, 1 << 53, 9_223_372_036_854_774_784], &["-1", "18446744073709551616"]);
    check(&[0_usize, 7], &["-1"]);
    check(&[i8::MIN, -1, 0, i8::MAX], &["128", "-129", "-0"]);
    check(&[i16::MIN, i16::MAX], &["32768", "-0"]);
    check(&[i32::MIN, 0, i32::MAX], &["2147483648", "-2147483649"]);
    check(&[-9_223_372_036_854_774_784_i64, 0], &["-0", "9223372036854775808"]);
    check(&[-1_i128, 1], &["-0"]);
    check(&[0_u128, 1], &["-1"]);
    check(&[NonZeroU32::MIN, NonZeroU32::MAX], &["0", "4294967296"]);
    check(&[Some(-5_i32), None], &["2147483648", "\"5\"", "-0"]);
    check(&[Some(5_u8), None], &["256"]);
}

#[test]
fn other_scalars() {
    check(&[0.5_f64, -1e3, 7.0], &["\"1\"", "NaN"]);
    check(&[0.5_f32], &["null"]);
    check(&[true, false], &["1"]);
    check(&['a', 'é'], &["\"ab\"", "\"\""]);
    check(&[String::new(), "a \"b\" \\ \n é🦖".to_owned()], &["a", "null"]);
    check(&[()], &["0"]);
    check(&[IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)], &["\"x\""]);
    check(&[Some(IpAddr::V4(Ipv4Addr::LOCALHOST)), None], &["\"x\""]);
    check(&[Duration::new(3, 5)], &["3"]);
    check(&[Some("a".to_owned()), None], &["1"]);
}

#[test]
fn collections() {
    check(&[vec![1_u8, 2], vec![]], &["[256]", "[1,]"]);
    check(&[[1_i8, -2, 3]], &["[1,2]", "[1,2,3,4]"]);
    check(&[(1_u8, "a".to_owned(), None::<bool>)], &["[1,\"a\"]"]);
    check(&[BTreeSet::from([1_u8, 2])], &["[-1]"]);
    check(&[BTreeMap::from([("a".to_owned(), 1_u8)]), BTreeMap::new()], &["{\"a\":-1}"]);
    check(&[HashMap::from([("b".to_owned(), vec![true])])], &["{\"b\":true}"]);
    check(&[BTreeMap::from([(7_u32, true)])], &["{\"a\":true}", "{\"-1\":true}"]);
    check(&[BTreeMap::from([(-7_i64, true)])], &["{\"a\":true}", "{\"-\":true}"]);
    check(&[vec![vec![Some(1_u8)], vec![None]]], &["[[]"]);
    check(&[Box::new(1_u8)], &["-1"]);
    check(&[json!({ "any": [1, null] }), json!(1)], &["{"]);
}

/// A town.
#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Town {
    /// What it is called.
    name: String,
    place: Place,
    mayor: Option<Person>,
    #[serde(default)]
    twins: Vec<Place>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Place {
    /// From the equator.
    degrees_north: i8,
    #[serde(rename = "country code", skip_serializing_if = "Option::is_none")]
    country: Option<String>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Person {
    #[schemars(length(min = 1, max = 10))]
    name: String,
    #[schemars(range(min = 18, max = 120))]
    age: u8,
    #[schemars(regex(pattern = r"^[A-Z]{2}[0-9]{3}$"))]
    code: String,
}

fn place(degrees_north: i8) -> Place {
    Place { degrees_north, country: None }
}

fn person() -> Person {
    Person { name: "Ann".into(), age: 40, code: "AB123".into() }
}

#[test]
fn structs_have_their_fields_and_no_others() {
    let town = |mayor| Town { name: "Bern".into(), place: place(46), mayor, twins: vec![] };
    let abroad = Place { degrees_north: -1, country: Some("NZ".into()) };
    let two = Town { twins: vec![place(1), abroad], ..town(None) };
    check(
        &[town(None), town(Some(person())), two],
        &[
            "{}",
            r#"{"name":"a","place":{"degreesNorth":1},"mayor":null,"other":1}"#,
            r#"{"name":"a","place":{"degreesNorth":1,"x":1}}"#,
        ],
    );
    let written = |age: &str| format!(r#"{{"name":"Ann","age":{age},"code":"AB123"}}"#);
    check(&[person()], &[&written("17"), &written("121"), &written("\"20\"")]);
    let schema = schema_of::<Town>();
    assert_eq!(schema["description"], "A town.");
    assert_eq!(schema["properties"]["name"]["description"], "What it is called.");
    let text = schema.to_string();
    for left_out in ["$schema", "title", "default", "int8"] {
        assert!(!text.contains(left_out), "{text}");
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Unit;
#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Empty {}
#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Newtype(u8);
#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Pair(u8, bool);
#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Generic<T> {
    value: T,
    more: Vec<T>,
}

#[test]
fn structs_of_other_kinds() {
    check(&[Unit], &["{}"]);
    check(&[Empty {}], &["{\"a\":1}", "null"]);
    check(&[Newtype(5)], &["256", "[5]"]);
    check(&[Pair(5, true)], &["[5]", "[5,true,1]"]);
    check(&[Generic { value: place(1), more: vec![place(2)] }], &["{}"]);
    check(&[Generic { value: Some(1_u8), more: vec![] }], &["{\"value\":-1,\"more\":[]}"]);
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
enum Colour {
    Red,
    /// Like the sky.
    Blue,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
enum External {
    Nothing,
    /// One.
    One(u8),
    Two(u8, bool),
    Town(Place),
    Fields {
        a: u8,
        b: Option<Colour>,
    },
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Internal {
    Nothing,
    Fields { a: u8 },
    Town(Person),
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", content = "of")]
enum Adjacent {
    Nothing,
    One(u8),
    Fields { a: u8 },
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Untagged {
    Number(u8),
    Text(String),
    Town(Place),
    Many(Vec<Self>),
}

#[test]
fn enums() {
    check(&[Colour::Red, Colour::Blue], &["\"Green\"", "{}"]);
    check(
        &[
            External::Nothing,
            External::One(1),
            External::Two(1, true),
            External::Town(place(1)),
            External::Fields { a: 1, b: Some(Colour::Red) },
        ],
        &["\"One\"", "{\"One\":1,\"Two\":[1,true]}", "{\"Fields\":{\"b\":null}}", "{}"],
    );
    check(
        &[Internal::Nothing, Internal::Fields { a: 1 }, Internal::Town(person())],
        &[r#"{"kind":"other"}"#, r#"{"kind":"fields"}"#, r#"{"kind":"nothing","a":1}"#],
    );
    check(
        &[Adjacent::Nothing, Adjacent::One(1), Adjacent::Fields { a: 1 }],
        &[r#"{"kind":"One"}"#, r#"{"kind":"Fields","of":1}"#],
    );
    check(
        &[
            Untagged::Number(1),
            Untagged::Text("a".into()),
            Untagged::Town(place(1)),
            Untagged::Many(vec![Untagged::Number(2)]),
        ],
        &["256", "null", "true"],
    );
    check::<Result<u8, String>>(&[Ok(1), Err("a".to_owned())], &["1"]);
    check(&[vec![Some(Colour::Red), None]], &["[1]"]);
    check(&[BTreeMap::from([("a".to_owned(), Adjacent::One(1))])], &["{\"a\":1}"]);
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Flattened {
    id: u8,
    #[serde(flatten)]
    person: Person,
    #[serde(flatten)]
    kind: Adjacent,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
struct WithMore {
    id: u8,
    #[serde(flatten)]
    more: BTreeMap<String, bool>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
struct TwoEnums {
    #[serde(flatten)]
    one: Adjacent,
    #[serde(flatten)]
    two: Shape,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "shape")]
enum Shape {
    Circle { radius: u8 },
    Square { side: u8 },
}

#[test]
fn what_is_flattened_into_an_object() {
    let reads = r#"{"kind":"One","id":1,"name":"Ann","age":40,"code":"AB123","of":1}"#;
    let flattened = Flattened { id: 1, person: person(), kind: Adjacent::One(1) };
    assert_eq!(serde_json::from_str::<Flattened>(reads).expect("in any order"), flattened);
    check::<Flattened>(&[], &[r#"{"id":1}"#]);
    check(
        &[WithMore { id: 1, more: BTreeMap::from([("a".to_owned(), true)]) }],
        &[r#"{"id":1,"a":1}"#],
    );
    check::<TwoEnums>(&[], &[r#"{"kind":"Nothing"}"#, r#"{"shape":"Circle","radius":1}"#]);
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Tree {
    value: u8,
    children: Vec<Self>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
struct List {
    value: u8,
    next: Option<Box<Self>>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "op")]
enum Expression {
    Number { value: u8 },
    Sum { of: Vec<Self> },
    Negated(Box<Wrapped>),
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Wrapped {
    inner: Expression,
}

#[test]
fn recursive_types() {
    let leaf = |value| Tree { value, children: vec![] };
    check(
        &[leaf(1), Tree { value: 2, children: vec![leaf(3), leaf(4)] }],
        &[r#"{"value":1}"#, r#"{"value":1,"children":[{}]}"#],
    );
    let end = List { value: 1, next: None };
    check(&[List { value: 2, next: Some(Box::new(end)) }], &[r#"{"value":1,"next":{}}"#]);
    let number = || Expression::Number { value: 1 };
    let negated = Expression::Negated(Box::new(Wrapped { inner: number() }));
    check(
        &[Expression::Sum { of: vec![number(), negated] }],
        &[r#"{"op":"Sum","of":[1]}"#, r#"{"op":"Negated"}"#],
    );
    check(&[vec![leaf(1)]], &["[{}]"]);
}

#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is wanted")]
struct Unknown {
    #[schemars(extend("format" = "phone"))]
    number: String,
}

#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is wanted")]
struct Conditional {
    #[schemars(extend("if" = { "const": 1 }))]
    number: u8,
}

#[test]
fn what_cannot_be_enforced_is_refused_by_its_name() {
    let model = Model::bytes();
    let refused = |schema: Value| match model.compile(&Source::JsonSchema(schema)) {
        Err(GrammarError::At { pointer, what }) => (pointer, what),
        other => panic!("{other:?}"),
    };
    let (at, what) = refused(schema_of::<Unknown>());
    assert_eq!(at, "/properties/number/format");
    assert!(what.contains("\"phone\""), "{what}");
    let (at, what) = refused(schema_of::<Conditional>());
    assert_eq!(at, "/properties/number/if");
    assert!(what.contains("\"if\""), "{what}");
}
