package main

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/daemon"
)

var (
	block   = regexp.MustCompile("(?ms)^```[a-z]*\n(.*?)^```")
	inline  = regexp.MustCompile("`(twilld [^`]+)`")
	command = regexp.MustCompile(`(?m)^(?:# |\$ )?(twilld(?: .*)?)$`)
	flag    = regexp.MustCompile(`(?:^|[ \[])(--?[a-z][a-z0-9-]*)`)
)

// A page must not have a command line of twilld that it refuses. Pages are read as they
// are, so a flag that is renamed is noticed wherever it is written.
func TestFlagsOfTwilldOnPagesExist(t *testing.T) {
	var help bytes.Buffer
	if err := daemon.Run(context.Background(), []string{"--help"}, nil, &help, io.Discard); err != nil {
		t.Fatal(err)
	}
	found := 0
	root := os.DirFS("../..")
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (name == "bin" || name == "dist" || name == ".git"):
			return fs.SkipDir
		case path.Ext(name) != ".md":
			return nil
		}
		text, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		var lines []string
		for _, b := range block.FindAllStringSubmatch(string(text), -1) {
			joined := strings.ReplaceAll(b[1], "\\\n", " ")
			for _, c := range command.FindAllStringSubmatch(joined, -1) {
				lines = append(lines, c[1])
			}
		}
		for _, c := range inline.FindAllStringSubmatch(string(text), -1) {
			lines = append(lines, c[1])
		}
		for _, line := range lines {
			line, _, _ = strings.Cut(line, " #")
			for _, f := range flag.FindAllStringSubmatch(line, -1) {
				found++
				known := "  -" + "-" + strings.TrimLeft(f[1], "-")
				if !strings.Contains(help.String(), known+" ") && !strings.Contains(help.String(), known+"\n") {
					t.Errorf("%s: %q has the flag %s, which twilld does not have", name, line, f[1])
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if found < 20 {
		t.Errorf("only %d flags found: are the pages read?", found)
	}
}
