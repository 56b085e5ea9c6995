// Command site makes a website of the repository's pages: README.md, docs, and what they
// link to. Every link within the repository must lead somewhere, headings included.
//
//	site ROOT DIR
package main

import (
	"fmt"
	"os"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: site ROOT DIR")
		os.Exit(2)
	}
	s, err := read(os.DirFS(os.Args[1]))
	if err == nil {
		err = s.write(os.Args[2])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "site:", err)
		os.Exit(1)
	}
	fmt.Printf("%d pages in %s\n", len(s.pages), os.Args[2])
}
