package main

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// site is all pages, by their path in the repository.
type site struct {
	root  fs.FS
	pages map[string]*page
	files map[string]bool // that pages link to, copied as they are
}

// roots are the pages that need no link to them.
var roots = []string{"README.md", "docs/*.md", "deploy/*/README.md"}

// read reads all pages and what they link to. Its error lists every link that leads
// nowhere.
func read(root fs.FS) (*site, error) {
	s := &site{root: root, pages: make(map[string]*page), files: make(map[string]bool)}
	var todo []string
	for _, pattern := range roots {
		found, err := fs.Glob(root, pattern)
		if err != nil {
			return nil, err
		}
		todo = append(todo, found...)
	}
	var errs []error
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		if s.pages[name] != nil {
			continue
		}
		p, err := s.parse(name)
		if err != nil {
			return nil, err
		}
		s.pages[name] = p
		for _, l := range p.links {
			target, err := s.target(name, l)
			switch {
			case err != nil:
				errs = append(errs, err)
			case path.Ext(target) == ".md":
				todo = append(todo, target)
			case target != "":
				s.files[target] = true
			}
		}
	}
	return s, errors.Join(append(errs, s.checkAnchors()...)...)
}

// target returns the file that a link on the page name leads to: a page, another file, or
// "" for what is not in the repository.
func (s *site) target(name, link string) (string, error) {
	if link == "" || strings.Contains(link, "://") || strings.HasPrefix(link, "mailto:") {
		return "", nil
	}
	file, _, _ := strings.Cut(link, "#")
	if file == "" {
		return name, nil
	}
	to := path.Join(path.Dir(name), file)
	info, err := fs.Stat(s.root, to)
	if err == nil && info.IsDir() {
		to = path.Join(to, "README.md")
		if _, none := fs.Stat(s.root, to); none != nil {
			to = "" // a directory without a page of its own
		}
	}
	if err != nil {
		return "", fmt.Errorf("%s: link to %s: no such file", name, link)
	}
	return to, nil
}

// checkAnchors returns an error for each link to a heading that is not there.
func (s *site) checkAnchors() (errs []error) {
	for _, name := range slices.Sorted(maps.Keys(s.pages)) {
		for _, l := range s.pages[name].links {
			_, anchor, ok := strings.Cut(l, "#")
			target, err := s.target(name, l)
			if !ok || err != nil || s.pages[target] == nil {
				continue
			}
			if !s.pages[target].anchors[anchor] {
				errs = append(errs, fmt.Errorf("%s: link to %s: no such heading", name, l))
			}
		}
	}
	return errs
}

// address returns where a link on the page name leads to on the site.
func (s *site) address(name, link string) string {
	target, err := s.target(name, link)
	if err != nil || target == "" {
		return link
	}
	_, anchor, ok := strings.Cut(link, "#")
	if ok {
		anchor = "#" + anchor
	}
	return relative(name, address(target)) + anchor
}

// address returns the path of a file on the site.
func address(name string) string {
	if name == "README.md" {
		return "index.html"
	}
	if base, ok := strings.CutSuffix(name, ".md"); ok {
		return base + ".html"
	}
	if strings.HasSuffix(name, ".go") {
		return name + ".txt" // or the go command would take it for a package
	}
	return name
}

// relative returns the way from the page name to another path.
func relative(name, to string) string {
	return strings.Repeat("../", strings.Count(name, "/")) + to
}

// write writes the site to dir, which is replaced.
func (s *site) write(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	put := func(name string, text []byte) error {
		to := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		return os.WriteFile(to, text, 0o644)
	}
	for name, p := range s.pages {
		text, err := s.render(name, p)
		if err == nil {
			err = put(address(name), text)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	for name := range s.files {
		text, err := fs.ReadFile(s.root, name)
		if err == nil {
			err = put(address(name), text)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
