//! Changes to the file that keep its comments and its order.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use toml_edit::{Array, DocumentMut, Item, Table, TableLike, Value, value};

use crate::{
    error::{InvalidTenants, TenantsError},
    fields::TenantName,
    file::{Limits, TenantsFile, position, read_text},
    key::{ApiKey, key_digest},
    replace::{lock, lock_path, replace},
};

/// What a new tenant is given; what is `None` is left out of the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NewTenant {
    /// Its part of the engine beside other tenants', from 1 to 1 000 000.
    pub weight: Option<u32>,
    /// The share of the engine that it always gets, from 0 to 1.
    pub min_share: Option<f64>,
    /// The served models that it may use; all if `None`.
    pub models: Option<Vec<String>>,
    /// What it may use at once and over time.
    pub limits: Limits,
}

/// Adds a tenant to the file at `path`, which is made if it is not there, and returns its
/// key.
///
/// # Errors
/// If there is a tenant of this name, the file cannot be read or written, or it is not
/// valid as it is or as it would be. The file is then as it was.
pub fn add(path: &Path, name: &str, tenant: &NewTenant) -> Result<ApiKey, TenantsError> {
    let key = ApiKey::generate();
    edit(path, IfAbsent::Create, |document, file| {
        if file.fields.tenants.contains_key(&TenantName(name.to_owned())) {
            return Err(TenantsError::Exists { path: path.into(), name: name.into() });
        }
        let tenants = document.entry("tenants").or_insert_with(|| {
            let mut tenants = Table::new();
            tenants.set_implicit(true);
            tenants.into()
        });
        table_like(tenants).insert(name, describe(tenant, &key).into());
        Ok(())
    })?;
    Ok(key)
}

/// Gives a tenant a new key and returns it. Its other keys are removed, or with `keep_old`
/// stay until they are rotated without.
///
/// # Errors
/// If there is no such tenant, the file cannot be read or written, or it is not valid as
/// it is or as it would be. The file is then as it was.
pub fn rotate(path: &Path, name: &str, keep_old: bool) -> Result<ApiKey, TenantsError> {
    let key = ApiKey::generate();
    edit(path, IfAbsent::Refuse, |document, _| {
        let tenant = document
            .get_mut("tenants")
            .and_then(|tenants| table_like(tenants).get_mut(name))
            .ok_or_else(|| TenantsError::Unknown { path: path.into(), name: name.into() })?;
        list_key(table_like(tenant), "keys", &key, keep_old);
        Ok(())
    })?;
    Ok(key)
}

/// Adds a key for those who run the server to the file at `path`, which is made if it is
/// not there, and returns it.
///
/// # Errors
/// If the file cannot be read or written, or is not valid as it is or as it would be. The
/// file is then as it was.
pub fn add_admin_key(path: &Path) -> Result<ApiKey, TenantsError> {
    let key = ApiKey::generate();
    edit(path, IfAbsent::Create, |document, _| {
        list_key(document.as_table_mut(), "admin_keys", &key, true);
        Ok(())
    })?;
    Ok(key)
}

#[derive(Clone, Copy, PartialEq)]
enum IfAbsent {
    Create,
    Refuse,
}

/// Changes a valid file into a valid file, or not at all.
fn edit(
    path: &Path,
    if_absent: IfAbsent,
    change: impl FnOnce(&mut DocumentMut, &TenantsFile) -> Result<(), TenantsError>,
) -> Result<(), TenantsError> {
    let creates = |error: &io::Error| {
        if_absent == IfAbsent::Create && error.kind() == io::ErrorKind::NotFound
    };
    // Where the path is a link, what it leads to is replaced.
    let target = match fs::canonicalize(path) {
        Err(error) if creates(&error) => path.to_owned(),
        target => target.map_err(io_at(path))?,
    };
    let lock_path = lock_path(&target);
    let _lock = lock(&lock_path).map_err(io_at(&lock_path))?;
    let text = match read_text(&target) {
        Err(error) if creates(&error) => String::new(),
        text => text.map_err(io_at(path))?,
    };
    let invalid = |reason| TenantsError::Invalid { path: path.into(), reason };
    let file = TenantsFile::parse(&text).map_err(invalid)?;
    let mut document: DocumentMut = text.parse().map_err(|error: toml_edit::TomlError| {
        let (line, column) = position(&text, error.span());
        invalid(InvalidTenants::Syntax { line, column, reason: error.message().to_owned() })
    })?;
    change(&mut document, &file)?;
    let text = document.to_string();
    TenantsFile::parse(&text)
        .map_err(|reason| TenantsError::Refused { path: path.into(), reason })?;
    replace(&target, &text).map_err(io_at(path))
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> TenantsError {
    let path = PathBuf::from(path);
    |source| TenantsError::Io { path, source }
}

fn table_like(item: &mut Item) -> &mut dyn TableLike {
    item.as_table_like_mut().expect("in a valid file tenants are tables")
}

fn describe(tenant: &NewTenant, key: &ApiKey) -> Table {
    let NewTenant { weight, min_share, models, limits } = tenant;
    let mut table = Table::new();
    if let &Some(weight) = weight {
        table.insert("weight", value(i64::from(weight)));
    }
    if let &Some(min_share) = min_share {
        table.insert("min_share", value(min_share));
    }
    list_key(&mut table, "keys", key, false);
    if let Some(models) = models {
        table.insert("models", value(models.iter().collect::<Array>()));
    }
    let count = |count: Option<usize>| count.map(|count| count as u64);
    let limits = [
        ("max_running", count(limits.max_running)),
        ("max_queued", count(limits.max_queued)),
        ("max_kv_blocks", count(limits.max_kv_blocks)),
        ("tokens_per_minute", limits.tokens_per_minute),
    ];
    if limits.iter().any(|(_, limit)| limit.is_some()) {
        let mut fields = Table::new();
        for (field, limit) in limits {
            if let Some(limit) = limit {
                // The most that TOML can say is as good as more.
                fields.insert(field, value(i64::try_from(limit).unwrap_or(i64::MAX)));
            }
        }
        table.insert("limits", fields.into());
    }
    table
}

/// Puts a key's digest into a list, beside the others or in their place.
fn list_key(table: &mut dyn TableLike, field: &str, key: &ApiKey, keep_old: bool) {
    let digest = key_digest(key.as_str());
    match table.get_mut(field).and_then(Item::as_array_mut) {
        Some(list) if keep_old => push(list, digest),
        Some(list) => {
            // What is said between the old keys is about them.
            list.clear();
            list.set_trailing("");
            list.set_trailing_comma(false);
            list.push(digest);
        }
        None => {
            table.insert(field, value(Array::from_iter([digest])));
        }
    }
}

/// Adds to a list. One of a line for each value stays so, and the comment behind the last
/// value stays behind it.
fn push(list: &mut Array, digest: String) {
    let mut tail = String::new();
    if let Some(last) = list.iter_mut().last() {
        let decor = last.decor_mut();
        tail.push_str(decor.suffix().and_then(|suffix| suffix.as_str()).unwrap_or_default());
        decor.set_suffix("");
    }
    tail.push_str(list.trailing().as_str().unwrap_or_default());
    if !tail.contains('\n') {
        list.push(digest);
        return;
    }
    let first = list.get(0).and_then(|value| value.decor().prefix()?.as_str());
    let indent = first.and_then(|prefix| prefix.rsplit_once('\n'));
    let indent = indent.map_or("    ", |(_, indent)| indent);
    let mut value = Value::from(digest);
    value.decor_mut().set_prefix(format!("{}\n{indent}", tail.trim_end()));
    list.push_formatted(value);
    list.set_trailing("\n");
    list.set_trailing_comma(true);
}
