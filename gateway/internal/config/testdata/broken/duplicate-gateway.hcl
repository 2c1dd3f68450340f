gateway {}
gateway {}
driver "native" {}
