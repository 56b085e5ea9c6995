#!/bin/sh
# flannel's script of this name, by the program that does the same.
exec twill docker-opts "$@"
