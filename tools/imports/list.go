package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
)

// pkg is a package of the module, with the packages of the module that its non-test
// files import. Paths are relative to the module's.
type pkg struct {
	path    string
	imports []string
}

// list returns the packages of the module in dir, without those that contain only tests.
func list(dir string) ([]pkg, error) {
	cmd := exec.Command("go", "list", "-json=ImportPath,GoFiles,Imports,Module", "./...")
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list in %s: %w: %s", dir, err, &stderr)
	}
	return decode(bytes.NewReader(out))
}

// decode reads the output of "go list -json": one object after the other.
func decode(r io.Reader) ([]pkg, error) {
	var pkgs []pkg
	for d := json.NewDecoder(r); ; {
		var p struct {
			ImportPath       string
			GoFiles, Imports []string
			Module           struct{ Path string }
		}
		switch err := d.Decode(&p); {
		case errors.Is(err, io.EOF):
			return pkgs, nil
		case err != nil:
			return nil, fmt.Errorf("read go list's output: %w", err)
		}
		if len(p.GoFiles) == 0 {
			continue // contains only tests
		}
		prefix := p.Module.Path + "/"
		found := pkg{path: strings.TrimPrefix(p.ImportPath, prefix)}
		for _, path := range p.Imports {
			if own, ok := strings.CutPrefix(path, prefix); ok {
				found.imports = append(found.imports, own)
			}
		}
		slices.Sort(found.imports)
		pkgs = append(pkgs, found)
	}
}
