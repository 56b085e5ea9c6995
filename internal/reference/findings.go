package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// findings returns the page of what twill doctor and twill check may say, read from the
// source of package doctor in dir.
func findings(dir string) ([]byte, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("read %s: no Go files (%v)", dir, err)
	}
	var b bytes.Buffer
	b.WriteString("# What doctor says\n\n<!-- made from the code by \"make reference\" -->\n\nFindings of `twill doctor` and `twill check` that name a remedy, with … for what they find on\nthe host. A `warn` may be as intended. [Troubleshooting](troubleshoot.md) begins with\nsymptoms.\n\n| | finding | what repairs it |\n|---|---|---|\n")
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		rows, err := findingsIn(name)
		if err != nil {
			return nil, err
		}
		for _, r := range rows {
			b.WriteString(r)
		}
	}
	return b.Bytes(), nil
}

// findingsIn returns the rows of the findings in a file.
func findingsIn(name string) (rows []string, err error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	file, err := parser.ParseFile(token.NewFileSet(), name, text, 0)
	if err != nil {
		return nil, err
	}
	ast.Inspect(file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok || len(call.Args) < 2 {
			return true
		}
		level := map[string]string{"badf": "bad", "warnf": "warn"}[nameOf(call.Fun)]
		finding, remedy := wording(call.Args[1]), wording(call.Args[0])
		if level == "" || remedy == "" || strings.Trim(finding, "… :") == "" {
			return true
		}
		if remedy = "`" + escape(remedy) + "`"; strings.Trim(remedy, "`… ") == "" {
			remedy = "the command that it prints"
		}
		row := fmt.Sprintf("| %s | %s | %s |\n", level, escape(finding), remedy)
		if !slices.Contains(rows, row) {
			rows = append(rows, row)
		}
		return true
	})
	return rows, nil
}

func nameOf(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	}
	return ""
}

var verb = regexp.MustCompile(`%[#+ 0-9.\[\]]*[a-zA-Z]`)

// wording returns the text that an expression makes, with … for values.
func wording(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		if text, err := strconv.Unquote(e.Value); err == nil {
			return verb.ReplaceAllString(text, "…")
		}
	case *ast.BinaryExpr:
		return wording(e.X) + wording(e.Y)
	case *ast.CallExpr:
		switch nameOf(e.Fun) {
		case "Sprintf":
			return wording(e.Args[0])
		case "setSysctl":
			return "sysctl -w …"
		}
	case *ast.Ident:
		if e.Name == "startDaemon" {
			return "systemctl start twilld"
		}
	}
	return "…"
}

func escape(s string) string { return strings.ReplaceAll(s, "|", `\|`) }

// write writes the pages to the directory docs.
func write(docs string) error {
	reference, err := page()
	if err != nil {
		return err
	}
	doctor, err := findings(filepath.Join(docs, "..", "internal", "doctor"))
	if err != nil {
		return err
	}
	const mode fs.FileMode = 0o644
	if err := os.WriteFile(filepath.Join(docs, "reference.md"), reference, mode); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(docs, "findings.md"), doctor, mode)
}
