// Package release has no code. The tool lines of its go.mod pin the programs that
// "make release" runs besides the go command.
package release
