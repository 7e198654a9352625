//! A reader of device-tree sources, of as much of the language as `boards/` uses.

use std::collections::HashMap;

use iommu_assign::dt::{Node, Property, Tree};

/// A node as its source writes it.
#[derive(Debug, Default)]
pub(crate) struct SourceNode {
    name: String,
    properties: Vec<(String, Vec<Piece>)>,
    children: Vec<SourceNode>,
}

#[derive(Debug)]
enum Piece {
    Bytes(Vec<u8>),
    /// The phandle of the labelled node.
    Phandle(String),
    /// The path of the labelled node.
    Path(String),
}

/// A source: its root, and the path that each label stands for.
#[derive(Debug)]
pub(crate) struct Source {
    root: SourceNode,
    labels: HashMap<String, String>,
}

impl Source {
    pub(crate) fn read(text: &str) -> Self {
        let mut lexer = Lexer { rest: text };
        for expected in ["/dts-v1/", ";", "/", "{"] {
            assert_eq!(lexer.next(), expected);
        }
        let mut labels = HashMap::new();
        let root = node(&mut lexer, String::new(), "", &mut labels);
        assert_eq!(lexer.next(), "", "text follows the root node");
        Self { root, labels }
    }

    /// Checks that `tree` is what the device-tree compiler makes of this source, the numbers of phandles aside.
    pub(crate) fn check(&self, tree: &Tree<'_>) {
        self.check_node(&self.root, tree.root().unwrap());
        let paths: HashMap<u32, String> =
            tree.nodes().filter_map(|node| Some((node.phandle()?, node.path().unwrap()))).collect();
        for path in paths.values() {
            assert!(self.labels.values().any(|labelled| labelled == path), "{path} has a phandle and no label");
        }
    }

    fn check_node(&self, source: &SourceNode, node: Node<'_, '_>) {
        let path = node.path().unwrap();
        let made = ["phandle", "linux,phandle"];
        let properties: Vec<_> = node.properties().filter(|property| !made.contains(&property.name())).collect();
        let names: Vec<&str> = properties.iter().map(Property::name).collect();
        let expected: Vec<&str> = source.properties.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, expected, "properties of {path}");
        for (property, (name, pieces)) in properties.iter().zip(&source.properties) {
            let mut value = property.value();
            for piece in pieces {
                let expected = match piece {
                    Piece::Bytes(bytes) => bytes.clone(),
                    Piece::Path(label) => self.labels[label].bytes().chain([0]).collect(),
                    Piece::Phandle(label) => {
                        let target = node_at(&node, &self.labels[label]);
                        target.phandle().unwrap().to_be_bytes().to_vec()
                    }
                };
                value = value.strip_prefix(expected.as_slice()).unwrap_or_else(|| panic!("{path}: {name} differs"));
            }
            assert!(value.is_empty(), "{path}: {name} is longer than its source");
        }
        let children: Vec<_> = node.children().filter(|child| !child.is_metadata()).collect();
        let names: Vec<&str> = children.iter().map(Node::name).collect();
        let expected: Vec<&str> = source.children.iter().map(|child| child.name.as_str()).collect();
        assert_eq!(names, expected, "children of {path}");
        for (child, source) in children.into_iter().zip(&source.children) {
            self.check_node(source, child);
        }
    }
}

fn node_at<'t, 'a>(any: &Node<'t, 'a>, path: &str) -> Node<'t, 'a> {
    let root = any.ancestors().last().unwrap_or(*any);
    path.split('/').filter(|name| !name.is_empty()).fold(root, |node, name| {
        node.children().find(|child| child.name() == name).unwrap_or_else(|| panic!("{path} is not in the blob"))
    })
}

/// Reads a node's inside, from behind its `{` to behind its `};`.
fn node(lexer: &mut Lexer<'_>, name: String, path: &str, labels: &mut HashMap<String, String>) -> SourceNode {
    let mut node = SourceNode { name, ..SourceNode::default() };
    loop {
        let mut word = lexer.next();
        if word == "}" {
            assert_eq!(lexer.next(), ";");
            return node;
        }
        let mut label = None;
        if let Some(name) = word.strip_suffix(':') {
            label = Some(name.to_owned());
            word = lexer.next();
        }
        match lexer.next() {
            ";" => node.properties.push((word.to_owned(), Vec::new())),
            "=" => node.properties.push((word.to_owned(), value(lexer))),
            "{" => {
                let path = format!("{path}/{word}");
                if let Some(label) = label {
                    labels.insert(label, path.clone());
                }
                let child = self::node(lexer, word.to_owned(), &path, labels);
                node.children.push(child);
            }
            other => panic!("{word} is followed by {other}"),
        }
    }
}

/// Reads a property's value, to behind its `;`.
fn value(lexer: &mut Lexer<'_>) -> Vec<Piece> {
    let mut pieces = Vec::new();
    loop {
        let word = lexer.next();
        if let Some(text) = word.strip_prefix('"') {
            pieces.push(Piece::Bytes(text.trim_end_matches('"').bytes().chain([0]).collect()));
        } else if let Some(label) = word.strip_prefix('&') {
            pieces.push(Piece::Path(label.to_owned()));
        } else {
            assert_eq!(word, "<");
            loop {
                let cell = lexer.next();
                match cell.strip_prefix('&') {
                    _ if cell == ">" => break,
                    Some(label) => pieces.push(Piece::Phandle(label.to_owned())),
                    None => pieces.push(Piece::Bytes(number(cell).to_be_bytes().to_vec())),
                }
            }
        }
        match lexer.next() {
            "," => {}
            ";" => return pieces,
            other => panic!("a value is followed by {other}"),
        }
    }
}

fn number(word: &str) -> u32 {
    match word.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).unwrap(),
        None => word.parse().unwrap(),
    }
}

/// Words: a string with its quotes, a mark, or what stands between blanks and marks. A label keeps its colon.
struct Lexer<'a> {
    rest: &'a str,
}

impl<'a> Lexer<'a> {
    /// The next word; empty at the end.
    fn next(&mut self) -> &'a str {
        loop {
            self.rest = self.rest.trim_start();
            match self.rest.strip_prefix("/*") {
                Some(comment) => self.rest = comment.split_once("*/").expect("a comment does not end").1,
                None => break,
            }
        }
        let length = if let Some(string) = self.rest.strip_prefix('"') {
            string.find('"').expect("a string does not end") + 2
        } else if self.rest.starts_with(['{', '}', '<', '>', ';', '='])
            || self.rest.starts_with(", ")
            || self.rest.starts_with(",\n")
        {
            1
        } else {
            let mark = |character: char| character.is_whitespace() || "{}<>;=\"".contains(character);
            let word = &self.rest[..self.rest.find(mark).unwrap_or(self.rest.len())];
            word.find(':').map_or(word.trim_end_matches(',').len(), |colon| colon + 1)
        };
        let (word, rest) = self.rest.split_at(length);
        self.rest = rest;
        word
    }
}
