//! Recipe files: a recipe with its chain of bases, and the files that it names.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use labshift_model::{
    fault::nearest,
    recipe::{Content, Recipe},
};

use crate::error::{At, BuildError};

/// A recipe joined with its bases; paths of files are resolved.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The recipe.
    pub recipe: Recipe,
    /// Where it was read.
    pub path: PathBuf,
    /// Content of the files that it names by path.
    pub files: BTreeMap<String, Vec<u8>>,
    /// The recipe's own files and those that they name, base first: name as written, content.
    pub sources: Vec<(String, Vec<u8>)>,
    /// Where things are named: `package bash`, `file /etc/motd` to `base.toml:4`.
    pub lines: BTreeMap<String, String>,
}

/// Longest chain of bases.
const DEPTH: usize = 8;

/// Reads a recipe and all that it extends.
pub fn load(path: &Path) -> Result<Loaded, BuildError> {
    let mut chain: Vec<(PathBuf, Recipe)> = vec![];
    let mut texts = vec![];
    let mut next = Some(path.to_owned());
    while let Some(path) = next.take() {
        let text = read(&path)?;
        let recipe = Recipe::parse(&path.display().to_string(), &text)?;
        let directory = path.parent().unwrap_or(Path::new("")).to_owned();
        next = recipe.extends.as_ref().map(|base| directory.join(base));
        let same = |a: &Path, b: &Path| a.canonicalize().ok() == b.canonicalize().ok();
        if let Some(base) = &next {
            let circle = same(base, &path) || chain.iter().any(|(known, _)| same(known, base));
            if circle || chain.len() >= DEPTH {
                let reason = format!("\"extends\" goes in a circle through {}", base.display());
                return Err(BuildError::Unusable { path, reason });
            }
        }
        texts.push((path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default(), text));
        chain.push((path, recipe));
    }
    let mut lines = BTreeMap::new();
    let mut sources: Vec<(String, Vec<u8>)> = vec![];
    for (name, text) in texts.iter().rev() {
        lines.extend(lines_of(name, text));
    }
    let mut files = BTreeMap::new();
    let mut joined: Option<Recipe> = None;
    for (path, mut recipe) in chain.into_iter().rev() {
        let directory = path.parent().unwrap_or(Path::new(""));
        for file in &mut recipe.files {
            if let Content::Path(source) = &mut file.content {
                let full = directory.join(&*source);
                let written = source.clone();
                *source = full.display().to_string();
                if !files.contains_key(source) {
                    let bytes = fs::read(&full).map_err(|e| BuildError::Unusable {
                        path: path.clone(),
                        reason: format!("[[file]] {} has the source {}: {e}", file.dest, full.display()),
                    })?;
                    sources.push((written, bytes.clone()));
                    files.insert(source.clone(), bytes);
                }
            }
        }
        if let Some(boot) = &mut recipe.secure_boot {
            let mut read = |what: &str, named: &mut String| {
                let full = directory.join(&*named);
                let written = std::mem::replace(named, full.display().to_string());
                let bytes = fs::read(&full).map_err(|e| BuildError::Unusable {
                    path: path.clone(),
                    reason: format!("[secure_boot] {what} is {}: {e}", full.display()),
                })?;
                files.insert(named.clone(), bytes.clone());
                Ok::<_, BuildError>((written, bytes))
            };
            sources.push(read("cert", &mut boot.cert)?);
            // What is in `sources` is told to everybody: not the key.
            boot.key.as_mut().map(|key| read("key", key)).transpose()?;
        }
        if let Some(keyring) = &mut recipe.keyring {
            *keyring = directory.join(&*keyring).display().to_string();
        }
        joined = Some(match joined {
            None => recipe,
            Some(base) => recipe.over(base),
        });
    }
    sources.extend(texts.into_iter().rev().map(|(name, text)| (name, text.into_bytes())));
    Ok(Loaded { recipe: joined.unwrap_or_default(), path: path.to_owned(), files, sources, lines })
}

/// The lines on which a recipe names packages and files.
fn lines_of(name: &str, text: &str) -> BTreeMap<String, String> {
    let mut lines = BTreeMap::new();
    let Ok(table) = toml::de::DeTable::parse(text) else { return lines };
    let mut note = |what: &str, value: &toml::Spanned<toml::de::DeValue<'_>>| {
        if let Some(text_value) = value.get_ref().as_str() {
            let line = text[..value.span().start.min(text.len())].matches('\n').count() + 1;
            lines.insert(format!("{what} {text_value}"), format!("{name}:{line}"));
        }
    };
    let table = table.get_ref();
    for value in table.get("packages").and_then(|v| v.get_ref().as_array()).into_iter().flatten() {
        note("package", value);
    }
    if let Some(value) = table.get("kernel").and_then(|v| v.get_ref().as_table()?.get("package")) {
        note("package", value);
    }
    for value in table.get("file").and_then(|v| v.get_ref().as_array()).into_iter().flatten() {
        if let Some(dest) = value.get_ref().as_table().and_then(|t| t.get("dest")) {
            note("file", dest);
        }
    }
    lines
}

fn read(path: &Path) -> Result<String, BuildError> {
    match fs::read_to_string(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(absent(path)),
        other => other.at("reading", path),
    }
}

fn absent(path: &Path) -> BuildError {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut others: Vec<String> = fs::read_dir(directory)
        .map(|entries| entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    others.retain(|o| o.ends_with(".toml"));
    others.sort();
    let near = nearest(&name, others.iter().map(String::as_str))
        .or_else(|| others.iter().map(String::as_str).find(|o| o.trim_end_matches(".toml") == name));
    BuildError::NoRecipe {
        path: path.to_owned(),
        near: near.map(|n| path.with_file_name(n).display().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        directory
    }

    #[test]
    fn files_are_relative_to_the_recipe_that_names_them() {
        let directory = directory(&[
            ("base/b.toml", "packages = [\"aa\"]\n[[file]]\ndest = \"/x\"\nsource = \"x\"\n"),
            ("base/x", "from base"),
            ("top.toml", "name = \"top\"\nextends = \"base/b.toml\"\npackages = [\"bb\"]\n"),
        ]);
        let loaded = load(&directory.path().join("top.toml")).unwrap();
        assert_eq!(loaded.recipe.packages, ["aa", "bb"]);
        let line = |what: &str| loaded.lines[what].as_str();
        assert_eq!(
            (line("package aa"), line("package bb"), line("file /x")),
            ("b.toml:1", "top.toml:3", "b.toml:3")
        );
        let Content::Path(source) = &loaded.recipe.files[0].content else { panic!() };
        assert_eq!(loaded.files[source], b"from base");
    }

    #[test]
    fn refusals() {
        let directory = directory(&[
            ("a.toml", "extends = \"b.toml\""),
            ("b.toml", "extends = \"a.toml\""),
            ("lab.toml", "[[file]]\ndest = \"/x\"\nsource = \"gone\"\n"),
        ]);
        let fail = |name: &str| load(&directory.path().join(name)).unwrap_err().to_string();
        assert!(fail("a.toml").contains("goes in a circle"));
        assert!(fail("lab.toml").contains("[[file]] /x has the source"));
        assert!(fail("lap.toml").contains("did you mean"), "{}", fail("lap.toml"));
        assert!(fail("lab").contains("lab.toml"));
    }
}
