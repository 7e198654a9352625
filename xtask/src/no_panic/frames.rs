//! Whose code an instruction is: the functions that were inlined around it, by the image's debug information.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use addr2line::gimli::{self, DebuggingInformationEntry, Dwarf, EndianSlice, LittleEndian, Unit, UnitOffset};
use object::{Object, ObjectSection};

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// One function, as its source says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Frame {
    pub(crate) name: String,
    pub(crate) origin: Origin,
    /// `file:line`, the file below its package.
    pub(crate) place: String,
}

/// Where its source lies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// The compiler's own crates.
    Standard,
    /// A dependency.
    Crate(String),
    /// The library, and the list of its functions.
    Own,
}

/// The debug information.
pub(crate) struct Frames<'a> {
    context: addr2line::Context<Bytes<'a>>,
    dwarf: Arc<Dwarf<Bytes<'a>>>,
    root: &'a Path,
}

impl<'a> Frames<'a> {
    /// Reads it. `root` is the workspace's folder.
    pub(crate) fn read(file: &object::File<'a>, root: &'a Path) -> Result<Self, String> {
        let section = |id: gimli::SectionId| -> Result<Bytes<'a>, String> {
            let bytes = file.section_by_name(id.name()).map_or(Ok(&[][..]), |section| section.data());
            Ok(EndianSlice::new(bytes.map_err(|error| error.to_string())?, LittleEndian))
        };
        let dwarf = Arc::new(Dwarf::load(section)?);
        let context = addr2line::Context::from_arc_dwarf(dwarf.clone()).map_err(|error| error.to_string())?;
        Ok(Self { context, dwarf, root })
    }

    /// The functions around the instruction, the innermost first.
    pub(crate) fn at(&self, address: u64) -> Result<Vec<Frame>, String> {
        let mut frames = self.context.find_frames(address).skip_all_loads().map_err(|error| error.to_string())?;
        let mut found = Vec::new();
        while let Some(frame) = frames.next().map_err(|error| error.to_string())? {
            let name = frame.function.as_ref().and_then(|name| name.demangle().ok()).unwrap_or_default().into_owned();
            let name = without_hash(&name);
            let (path, line) = frame.location.map_or(("", 0), |at| (at.file.unwrap_or(""), at.line.unwrap_or(0)));
            let (origin, path) = self.origin(path);
            found.push(Frame { name, origin, place: format!("{path}:{line}") });
        }
        Ok(found)
    }

    fn origin<'p>(&self, path: &'p str) -> (Origin, &'p str) {
        if let Some((_, rest)) = path.split_once("/registry/src/") {
            let rest = rest.split_once('/').map_or(rest, |(_, rest)| rest);
            let package = rest.split('/').next().unwrap_or_default();
            return (Origin::Crate(package.rsplit_once('-').map_or(package, |(name, _)| name).to_owned()), rest);
        }
        if let Ok(rest) = Path::new(path).strip_prefix(self.root) {
            return (Origin::Own, rest.to_str().unwrap_or(path));
        }
        (Origin::Standard, path.rsplit_once("/library/").map_or(path, |(_, rest)| rest))
    }

    /// Where the functions are declared whose code is in the image, be it inlined: file and line.
    pub(crate) fn declared(&self) -> Result<BTreeSet<(String, u64)>, String> {
        self.declarations().map_err(|error| error.to_string())
    }

    fn declarations(&self) -> gimli::Result<BTreeSet<(String, u64)>> {
        let mut units = Vec::new();
        let mut headers = self.dwarf.units();
        while let Some(header) = headers.next()? {
            units.push(self.dwarf.unit(header)?);
        }
        let mut found = BTreeSet::new();
        for unit in &units {
            let mut entries = unit.entries();
            while let Some(entry) = entries.next_dfs()? {
                let is_function = matches!(entry.tag(), gimli::DW_TAG_subprogram | gimli::DW_TAG_inlined_subroutine);
                let has_code = entry.attr(gimli::DW_AT_low_pc).is_some() || entry.attr(gimli::DW_AT_ranges).is_some();
                let mut at = Some((unit, entry.offset())).filter(|_| is_function && has_code);
                while let Some((unit, offset)) = at {
                    let entry = unit.entry(offset)?;
                    found.extend(self.declaration(unit, &entry)?);
                    at = instance_of(&units, unit, &entry);
                }
            }
        }
        Ok(found)
    }

    fn declaration(
        &self,
        unit: &Unit<Bytes<'a>>,
        entry: &DebuggingInformationEntry<Bytes<'a>>,
    ) -> gimli::Result<Option<(String, u64)>> {
        let line = entry.attr_value(gimli::DW_AT_decl_line).and_then(|line| line.udata_value());
        let (Some(line), Some(gimli::AttributeValue::FileIndex(file)), Some(program)) =
            (line, entry.attr_value(gimli::DW_AT_decl_file), unit.line_program.as_ref())
        else {
            return Ok(None);
        };
        let Some(file) = program.header().file(file) else { return Ok(None) };
        let text = |value| self.dwarf.attr_string(unit, value).map(|text| text.to_string_lossy().into_owned());
        let mut path = std::path::PathBuf::new();
        if let Some(folder) = unit.comp_dir {
            path.push(&*folder.to_string_lossy());
        }
        if let Some(folder) = file.directory(program.header()) {
            path.push(text(folder)?);
        }
        path.push(text(file.path_name())?);
        let path = path.strip_prefix(self.root).unwrap_or(&path);
        Ok(Some((path.to_string_lossy().into_owned(), line)))
    }
}

/// What an entry is an instance of, be it in another unit.
fn instance_of<'u, 'a>(
    units: &'u [Unit<Bytes<'a>>],
    unit: &'u Unit<Bytes<'a>>,
    entry: &DebuggingInformationEntry<Bytes<'a>>,
) -> Option<(&'u Unit<Bytes<'a>>, UnitOffset)> {
    let value = entry.attr_value(gimli::DW_AT_abstract_origin);
    match value.or_else(|| entry.attr_value(gimli::DW_AT_specification))? {
        gimli::AttributeValue::UnitRef(offset) => Some((unit, offset)),
        gimli::AttributeValue::DebugInfoRef(offset) => {
            units.iter().find_map(|unit| Some((unit, offset.to_unit_offset(&unit.header)?)))
        }
        _ => None,
    }
}

/// A demangled name without the hashes of its crates, and without what it is generic over.
pub(crate) fn without_hash(name: &str) -> String {
    let mut out = String::new();
    let mut rest = name;
    while let Some((before, after)) = rest.split_once('[') {
        out.push_str(before);
        let (inside, behind) = after.split_once(']').unwrap_or((after, ""));
        let is_hash = inside.len() >= 12 && inside.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_hash {
            rest = behind;
        } else {
            out.push('[');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}
