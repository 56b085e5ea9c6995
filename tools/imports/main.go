// Imports checks the packages of a Go module against the layers that a page declares,
// and draws them.
//
//	imports check PAGE    report imports that break a rule, and a stale drawing
//	imports draw PAGE     write the drawing into the page
//
// It runs "go list" in the directory of the page. The section "## Packages" of the
// page has a table, whose rows are in the order of dependency:
//
//	| package | knows | rule |
//	|---|---|---|
//	| **layer** | | |
//	| `internal/backend/udp`, `internal/backend/vxlan` | ... | imports none of `lease/...` |
//
// A package imports only packages of rows below its own. The column "rule" restricts
// that further with clauses separated by ";":
//
//	imports nothing
//	imports none of `PATTERN`, ...
//	imported only by `PATTERN`, ...
//
// A pattern is a package's path in the module; "x/..." is x and all below it.
// Imports of test files are exempt: a test may use the laboratory.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "imports:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 || args[0] != "check" && args[0] != "draw" {
		return errors.New("usage: imports check|draw PAGE")
	}
	page := args[1]
	text, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	t, err := parseTable(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", page, err)
	}
	pkgs, err := list(filepath.Dir(page))
	if err != nil {
		return err
	}
	if broken := t.check(pkgs); len(broken) > 0 {
		return fmt.Errorf("%s: %w", page, errors.Join(broken...))
	}
	drawn, err := replaceDrawing(text, t.draw(pkgs))
	if err != nil {
		return fmt.Errorf("%s: %w", page, err)
	}
	switch {
	case bytes.Equal(drawn, text):
		return nil
	case args[0] == "check":
		return fmt.Errorf("%s: the drawing of imports is stale: run \"make imports\"", page)
	}
	return os.WriteFile(page, drawn, 0o644)
}
