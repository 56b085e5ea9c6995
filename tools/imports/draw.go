package main

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// draw returns a Mermaid flow chart: a box for each layer, containing the patterns of
// its rows, and an arrow for each import that is not implied by a longer path of
// arrows.
func (t table) draw(pkgs []pkg) string {
	var b strings.Builder
	b.WriteString("```mermaid\nflowchart TD\n")
	layer := ""
	for _, r := range t.rows {
		if r.layer != layer {
			if layer != "" {
				b.WriteString("  end\n")
			}
			layer = r.layer
			fmt.Fprintf(&b, "  subgraph %s [%s]\n", node("layer "+layer), layer)
		}
		for _, p := range r.patterns {
			fmt.Fprintf(&b, "    %s[%q]\n", node(string(p)), p)
		}
	}
	b.WriteString("  end\n")
	for _, a := range t.arrows(pkgs) {
		fmt.Fprintf(&b, "  %s --> %s\n", node(string(a.from)), node(string(a.to)))
	}
	b.WriteString("```\n")
	return b.String()
}

// node returns a pattern's Mermaid identifier.
func node(name string) string {
	return strings.NewReplacer("/...", "", "/", "_", " ", "_").Replace(name)
}

type arrow struct{ from, to pattern }

// arrows returns the imports between patterns in the table's order, without those
// that a longer path implies.
func (t table) arrows(pkgs []pkg) []arrow {
	to := map[pattern]map[pattern]bool{}
	for _, k := range pkgs {
		_, p, _ := t.find(k.path)
		for _, path := range k.imports {
			if _, q, _ := t.find(path); p != q {
				if to[p] == nil {
					to[p] = map[pattern]bool{}
				}
				to[p][q] = true
			}
		}
	}
	var order []pattern
	for _, r := range t.rows {
		order = append(order, r.patterns...)
	}
	// Imports lead to rows below, so what lies below is complete before it is used.
	reach := map[pattern]map[pattern]bool{}
	for _, p := range slices.Backward(order) {
		reach[p] = map[pattern]bool{}
		for q := range to[p] {
			reach[p][q] = true
			maps.Copy(reach[p], reach[q])
		}
	}
	var arrows []arrow
	for _, p := range order {
		for _, q := range order {
			if to[p][q] && !implied(to[p], reach, q) {
				arrows = append(arrows, arrow{p, q})
			}
		}
	}
	return arrows
}

// implied reports whether another of the direct imports leads to q.
func implied(direct map[pattern]bool, reach map[pattern]map[pattern]bool, q pattern) bool {
	for r := range direct {
		if r != q && reach[r][q] {
			return true
		}
	}
	return false
}

const (
	drawingBegins = "<!-- drawn by \"make imports\" -->\n"
	drawingEnds   = "<!-- end of the drawing -->\n"
)

// replaceDrawing puts the drawing between its markers in the page.
func replaceDrawing(page []byte, drawing string) ([]byte, error) {
	before, rest, ok := bytes.Cut(page, []byte(drawingBegins))
	_, after, ok2 := bytes.Cut(rest, []byte(drawingEnds))
	if !ok || !ok2 {
		return nil, errors.New("the page has no place for the drawing: want the lines " +
			strings.TrimSpace(drawingBegins) + " and " + strings.TrimSpace(drawingEnds))
	}
	return slices.Concat(before, []byte(drawingBegins), []byte(drawing), []byte(drawingEnds), after), nil
}
