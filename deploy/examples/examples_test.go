// Package examples has no code: it holds example configurations. Tests in
// internal/lab/e2e run them.
package examples

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestPageHasEachExample(t *testing.T) {
	page, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(".", func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && path != "README.md" && filepath.Ext(path) != ".go" && !bytes.Contains(page, []byte("("+path+")")) {
			t.Errorf("README.md has no %s", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestDocumentsQuoteTheExamples(t *testing.T) {
	for document, example := range map[string]string{
		"../../README.md":      "lease-file/leases.json",
		"../../docs/docker.md": "docker/docker.service.d/twill.conf",
	} {
		text, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		quoted, err := os.ReadFile(example)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(text, append(quoted, "```"...)) {
			t.Errorf("%s does not have %s as it is", document, example)
		}
	}
}
