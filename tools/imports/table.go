package main

import (
	"fmt"
	"regexp"
	"strings"
)

// table is the page's table of packages, from the top layer to the bottom.
type table struct {
	rows []row
}

// row is one or more patterns of the table with their rules. Packages of one row
// do not import each other.
type row struct {
	layer    string
	patterns []pattern
	rules    rules
}

// rules restrict what the order of the rows allows.
type rules struct {
	nothing bool      // imports nothing
	noneOf  []pattern // never imports these
	onlyBy  []pattern // is imported only by these; nil: by all above
}

// pattern is the path of a package in the module; "x/..." is x and all below it.
type pattern string

func (p pattern) match(path string) bool {
	dir, tree := strings.CutSuffix(string(p), "/...")
	return path == dir || tree && strings.HasPrefix(path, dir+"/")
}

func matchAny(ps []pattern, path string) bool {
	for _, p := range ps {
		if p.match(path) {
			return true
		}
	}
	return false
}

const section = "## Packages"

// parseTable reads the first table of the page's section on packages.
func parseTable(page string) (table, error) {
	var t table
	_, after, ok := strings.Cut("\n"+page, "\n"+section+"\n")
	if !ok {
		return t, fmt.Errorf("there is no section %q", section)
	}
	layer := ""
	for n, line := range tableLines(after) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != 3 {
			return t, fmt.Errorf("table of packages: %d cells, want 3: %s", len(cells), line)
		}
		if n < 2 {
			continue // the heading and the line below it
		}
		name := strings.TrimSpace(cells[0])
		if title, ok := strings.CutPrefix(name, "**"); ok {
			layer = strings.TrimSuffix(title, "**")
			continue
		}
		r, err := parseRules(cells[2])
		if err != nil {
			return t, fmt.Errorf("table of packages: %s: %w", name, err)
		}
		patterns := quoted(name)
		if len(patterns) == 0 || layer == "" {
			return t, fmt.Errorf("table of packages: want a layer in ** and, below it, packages in back quotes: %s", line)
		}
		t.rows = append(t.rows, row{layer: layer, patterns: patterns, rules: r})
	}
	if len(t.rows) == 0 {
		return t, fmt.Errorf("section %q has no table with packages", section)
	}
	return t, nil
}

// tableLines returns the lines of the first table in text.
func tableLines(text string) []string {
	var lines []string
	for line := range strings.Lines(text) {
		switch {
		case strings.HasPrefix(line, "|"):
			lines = append(lines, line)
		case len(lines) > 0, strings.HasPrefix(line, "## "):
			return lines
		}
	}
	return lines
}

func parseRules(cell string) (rules, error) {
	var r rules
	for clause := range strings.SplitSeq(cell, ";") {
		clause = strings.TrimSpace(clause)
		patterns := quoted(clause)
		words := strings.TrimSpace(quotes.ReplaceAllString(clause, ""))
		words = strings.TrimRight(words, ", ")
		switch {
		case clause == "":
		case words == "imports nothing" && len(patterns) == 0:
			r.nothing = true
		case words == "imports none of" && len(patterns) > 0:
			r.noneOf = append(r.noneOf, patterns...)
		case words == "imported only by" && len(patterns) > 0:
			r.onlyBy = append(r.onlyBy, patterns...)
		default:
			return r, fmt.Errorf("unknown rule %q", clause)
		}
	}
	return r, nil
}

var quotes = regexp.MustCompile("`([^`]+)`")

// quoted returns the strings in back quotes.
func quoted(s string) []pattern {
	var ps []pattern
	for _, m := range quotes.FindAllStringSubmatch(s, -1) {
		ps = append(ps, pattern(m[1]))
	}
	return ps
}
