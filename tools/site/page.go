package main

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"io/fs"
	"strconv"
	"strings"
	"unicode"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/extension"
	"github.com/yuin/goldmark/parser"
	"github.com/yuin/goldmark/renderer/html"
	"github.com/yuin/goldmark/text"
)

// page is a parsed page.
type page struct {
	title   string
	source  []byte
	tree    ast.Node
	links   []string // destinations of links and pictures
	anchors map[string]bool
}

// markdown is GitHub's dialect. HTML in pages is comments only, and is left out.
var markdown = goldmark.New(
	goldmark.WithExtensions(extension.GFM),
	goldmark.WithParserOptions(parser.WithAutoHeadingID()),
	goldmark.WithRendererOptions(html.WithXHTML()),
)

// parse reads a page.
func (s *site) parse(name string) (*page, error) {
	source, err := fs.ReadFile(s.root, name)
	if err != nil {
		return nil, err
	}
	p := &page{source: source, anchors: make(map[string]bool)}
	context := parser.NewContext(parser.WithIDs(&headings{used: p.anchors}))
	p.tree = markdown.Parser().Parse(text.NewReader(source), parser.WithContext(context))
	return p, ast.Walk(p.tree, func(n ast.Node, entering bool) (ast.WalkStatus, error) {
		if !entering {
			return ast.WalkContinue, nil
		}
		switch n := n.(type) {
		case *ast.FencedCodeBlock:
			if n.Info == nil {
				return ast.WalkStop, unnamed(name, source, n)
			}
		case *ast.CodeBlock:
			return ast.WalkStop, unnamed(name, source, n)
		case *ast.Heading:
			if p.title == "" {
				p.title = plain(n, source)
			}
		case *ast.Link:
			p.links = append(p.links, string(n.Destination))
		case *ast.Image:
			p.links = append(p.links, string(n.Destination))
		}
		return ast.WalkContinue, nil
	})
}

// unnamed is the error for a block without a language. The tests run the blocks sh and
// console, so that none may be overlooked.
func unnamed(name string, source []byte, n ast.Node) error {
	line := 0
	if n.Lines().Len() > 0 {
		line = 1 + bytes.Count(source[:n.Lines().At(0).Start], []byte("\n"))
	}
	return fmt.Errorf("%s:%d: this code has no language: put ```sh, ```console, ```text or another above it", name, line)
}

// plain returns the text of a node without marks.
func plain(n ast.Node, source []byte) string {
	var b strings.Builder
	for c := n.FirstChild(); c != nil; c = c.NextSibling() {
		if t, ok := c.(*ast.Text); ok {
			b.Write(t.Segment.Value(source))
		} else {
			b.WriteString(plain(c, source))
		}
	}
	return b.String()
}

// headings makes the anchors of headings as GitHub does.
type headings struct{ used map[string]bool }

// Generate implements parser.IDs.
func (h *headings) Generate(value []byte, _ ast.NodeKind) []byte {
	id := strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case unicode.IsLetter(r) || unicode.IsDigit(r) || r == '-' || r == '_':
			return unicode.ToLower(r)
		}
		return -1
	}, strings.TrimSpace(string(value)))
	free := id
	for n := 1; h.used[free]; n++ {
		free = id + "-" + strconv.Itoa(n)
	}
	h.used[free] = true
	return []byte(free)
}

// Put implements parser.IDs.
func (h *headings) Put(value []byte) { h.used[string(value)] = true }

//go:embed page.html
var layout string

var frame = template.Must(template.New("page").Parse(layout))

// section is a group of pages in the navigation.
type section struct {
	Title   string
	Entries []entry
}

type entry struct {
	Title, Address string
	Here           bool
}

// navigation is the order of the pages. A page that is not in it is reached by links.
var navigation = []struct {
	title string
	pages []string
}{
	{"Start", []string{"README.md", "deploy/examples/README.md", "docs/kubernetes.md", "docs/docker.md", "docs/systemd.md", "docs/boards.md"}},
	{"Understand", []string{"docs/how-it-works.md", "docs/backends.md", "docs/udp-backend.md", "docs/kernel-path.md", "docs/etcd.md", "docs/rules.md", "docs/compare.md", "docs/performance.md"}},
	{"Operate", []string{"docs/cli.md", "docs/troubleshoot.md", "deploy/monitoring/README.md"}},
	{"Look up", []string{"docs/reference.md", "docs/findings.md", "docs/dependencies.md", "CHANGELOG.md", "SECURITY.md", "ARCHITECTURE.md", "CONTRIBUTING.md"}},
}

// render returns the page as HTML.
func (s *site) render(name string, p *page) ([]byte, error) {
	err := ast.Walk(p.tree, func(n ast.Node, entering bool) (ast.WalkStatus, error) {
		if !entering {
			return ast.WalkContinue, nil
		}
		switch n := n.(type) {
		case *ast.Link:
			n.Destination = []byte(s.address(name, string(n.Destination)))
		case *ast.Image:
			n.Destination = []byte(s.address(name, string(n.Destination)))
		}
		return ast.WalkContinue, nil
	})
	if err != nil {
		return nil, err
	}
	var body, out bytes.Buffer
	if err := markdown.Renderer().Render(&body, p.source, p.tree); err != nil {
		return nil, err
	}
	var sections []section
	for _, group := range navigation {
		var entries []entry
		for _, to := range group.pages {
			if other := s.pages[to]; other != nil {
				entries = append(entries, entry{other.title, relative(name, address(to)), to == name})
			}
		}
		sections = append(sections, section{group.title, entries})
	}
	err = frame.Execute(&out, struct {
		Title    string
		Sections []section
		Body     template.HTML
	}{p.title, sections, template.HTML(body.String())})
	return out.Bytes(), err
}
