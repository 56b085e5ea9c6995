package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

func TestEveryLinkOfTheRepositoryLeadsSomewhere(t *testing.T) {
	s, err := read(os.DirFS("../.."))
	if err != nil {
		t.Fatal(err)
	}
	for _, group := range navigation {
		for _, name := range group.pages {
			if s.pages[name] == nil {
				t.Errorf("the navigation has %s, which is not a page", name)
			}
		}
	}
	dir := t.TempDir()
	if err := s.write(dir); err != nil {
		t.Fatal(err)
	}
	index, err := os.ReadFile(filepath.Join(dir, "index.html"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(index), `href="docs/backends.html"`) {
		t.Error("the first page does not link to the backends")
	}
	text, err := os.ReadFile(filepath.Join(dir, "docs", "how-it-works.html"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`href="../index.html"`, `href="../docs/udp-backend.html"`, "<pre><code"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("docs/how-it-works.html has no %s", want)
		}
	}
}

func TestLinksThatLeadNowhereAreNamed(t *testing.T) {
	for text, want := range map[string]string{
		"[x](docs/none.md)":        "README.md: link to docs/none.md: no such file",
		"[x](docs/a.md#none)":      "README.md: link to docs/a.md#none: no such heading",
		"[x](#none)":               "README.md: link to #none: no such heading",
		"![x](docs/none.png)":      "README.md: link to docs/none.png: no such file",
		"[x](docs/a.md#a-heading)": "",
		"# Here\n[x](#here)":       "",
		"[x](https://example.org)": "",
		"[x](deploy)":              "",
	} {
		_, err := read(fstest.MapFS{
			"README.md": {Data: []byte(text)}, "docs/a.md": {Data: []byte("# A `heading`!\n")}, "deploy/x": {},
		})
		if got := errorText(err); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

func TestCodeHasALanguage(t *testing.T) {
	const want = ": this code has no language: put ```sh, ```console, ```text or another above it"
	for text, at := range map[string]string{
		"# A page\n\n```\nmake\n```\n":     "README.md:4" + want,
		"# A page\n\n    make\n":           "README.md:3" + want,
		"# A page\n\n```sh\nmake\n```\n":   "",
		"- a list\n\n  with a paragraph\n": "",
	} {
		_, err := read(fstest.MapFS{"README.md": {Data: []byte(text)}})
		if got := errorText(err); got != at {
			t.Errorf("%q: %q, want %q", text, got, at)
		}
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestFilesThatPagesLinkToAreCopied(t *testing.T) {
	s, err := read(fstest.MapFS{"README.md": {Data: []byte("[unit](deploy/x.service) [code](x.go)")}, "deploy/x.service": {Data: []byte("[Unit]\n")}, "x.go": {}})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := s.write(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "x.go.txt")); err != nil {
		t.Errorf("Go code is not copied as text: %v", err)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "deploy", "x.service")); err != nil || string(text) != "[Unit]\n" {
		t.Errorf("%q, %v", text, err)
	}
}
