"""Small templates, one for each thing that chat templates lean on.

They are rendered over the conversation "two calls" of templates.py.
"""

SNIPPETS = r"""
{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %}{% endfor %}
{%- generation -%}  x  {%- endgeneration -%} y
{% set a = 1 %}{% generation %}{% set a = 2 %}{{ a }}{% endgeneration %}{{ a }}
{{ documents is none }}{{ tools is none }}{{ documents is defined }}{{ xml_tools is defined }}
{% if documents %}a{% else %}b{% endif %}
{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token }}{{ sep_token }}|{{ cls_token is defined }}
{{ add_generation_prompt }}
{{ missing }}|{{ messages[0].missing }}|{{ messages[0]['missing'] }}
{{ missing.more }}
{{ messages[0].missing.more }}
{{ missing + 'x' }}
{{ missing ~ 'x' }}
{{ missing | default('d') }}{{ none | default('d') }}{{ '' | default('d', true) }}{{ none | d('e', boolean=true) }}
{{ missing | default(default_value='d') }}{{ 0 | default(1, true) }}
{{ missing | length }}{{ missing | list }}{{ missing | items | list }}{{ missing | join(',') }}|
{% for x in missing %}a{% else %}b{% endfor %}
{% for x in none %}a{% endfor %}
{% for x in 5 %}a{% endfor %}
{% for k, v in tools[0].items() %}{{ k }}={{ v is mapping }};{% endfor %}
{% for k, v in tools[0].function.parameters | items %}{{ k }};{% endfor %}
{% for k, v in tools[0].function.parameters.properties | dictsort %}{{ k }};{% endfor %}
{% for k, v in {'b': 1, 'A': 2, 'c': 0} | dictsort(by='value') %}{{ k }};{% endfor %}
{% for k, v in {'b': 1, 'A': 2, 'c': 0} | dictsort(true, 'key', true) %}{{ k }};{% endfor %}
{{ {'b': 1, 'A': 2} | dictsort }}
{{ true }} {{ false }} {{ none }} {{ True }} {{ None }} {{ 1 }} {{ 1.0 }} {{ -0.0 }} {{ 1e16 }} {{ 1e-5 }} {{ 0.1 + 0.2 }}
{{ [1, 'a', "it's", 'b"c', none, true, 1.5, {'k': (1,), 'l': ()}] }}
{{ ('a\n\t\\é\x01', '\u00a0\u200b') }}
{{ messages[2].tool_calls }}
{{ tools[0].function.parameters }}
{{ 'a' ~ 1 ~ none ~ true ~ 1.5 ~ [1, 'x'] ~ {'a': 'b'} }}
{{ [1, 'x'] | string }}{{ none | string }}{{ true | string }}{{ 1e20 | string }}
{{ 7 // 2 }} {{ -7 // 2 }} {{ 7 / 2 }} {{ 4 / 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 7.5 % 2 }} {{ 7 % -3 }}
{{ 1 / 0 }}
{{ 1 % 0 }}
{{ true % 2.5 }} {{ 7 % true }} {{ 1.5 % true }}
{{ none | list }}
{{ 10 ** 20 }} {{ 99999999999999999999 + 1 }} {{ 18446744073709551615 }}
{{ 'ab' * 3 }} {{ [1] * 2 }} {{ 'a' + 'b' }} {{ [1] + [2] }} {{ (1,) + (2,) }}
{{ 'a' + 1 }}
{{ 'a' < 'b' }} {{ [1, 2] < [1, 3] }} {{ 1 == 1.0 }} {{ 1 == true }} {{ 'a' == 'a' }} {{ none == none }} {{ 1 < 2 < 3 }} {{ 3 > 2 > 2 }}
{{ 'b' in 'abc' }} {{ 1 in [1] }} {{ 'city' in tools[0].function.parameters.required }} {{ 'x' not in {'x': 1} }}
{{ not messages }} {{ messages and 1 }} {{ 0 or 'x' }} {{ [] or {} }} {{ '' and 1 }}
{{ 'a' if true else 'b' }}|{{ 'a' if false }}|
{{ 'abcdef'[1:3] }} {{ 'abcdef'[-2:] }} {{ 'abcdef'[::-1] }} {{ 'abcdef'[:-1] }} {{ 'abcdef'[4:1:-1] }} {{ 'abcdef'[::2] }} {{ 'abc'[0] }} {{ 'abc'[-1] }}
{{ [0, 1, 2, 3, 4][1:-1] }} {{ [0, 1, 2, 3][::-1] }} {{ [0, 1, 2, 3][-3:-1] }} {{ (0, 1, 2)[1:] }} {{ [1, 2][5:] }} {{ [0, 1, 2, 3][3:0:-1] }} {{ [0, 1, 2, 3][-1:0:-2] }} {{ [][::-1] }} {{ ''[::-1] }} {{ [1, 2, 3][:-1][-1] }} {{ [{'a': [1, 2]}][0].a[1:][0] }} {{ ('abc' ~ 'd')[1:] }} {{ [1, 2, 3][1:] | join(',') }}
{{ none[1:] }}
{{ missing[1:] }}
{{ messages[1:] | length }} {{ messages[-1].role }} {{ messages[::-1][0].role }} {{ messages[100] is defined }}
{{ [1, 2, 3][7] }}|{{ {'a': 1}['b'] }}|{{ {1: 'x'}[1] }}
{{ [3, 1, 2] | sort }} {{ ['b', 'A', 'c'] | sort }} {{ ['b', 'A'] | sort(case_sensitive=true) }} {{ [1, 2] | sort(reverse=true) }} {{ messages | map(attribute='role') | unique | list }}
{{ tools | map(attribute='function.name') | join(', ') }} {{ messages | map(attribute='x', default='d') | first }}
{{ messages | selectattr('role', 'equalto', 'tool') | list | length }} {{ messages | selectattr('tool_calls', 'defined') | map(attribute='content') | list }}
{{ messages | rejectattr('role', 'in', ['tool', 'user']) | map(attribute='role') | list }} {{ [1, 2, 3] | select('odd') | list }} {{ [0, 1, ''] | reject | list }} {{ [1, none] | reject('none') | list }}
{% if messages | selectattr('role', 'equalto', 'nobody') %}a{% else %}b{% endif %}{% set g = [1, 2] | select %}{{ g | list }}{{ g | list }}{{ g is sequence }}{{ g is iterable }}{{ g[0] }}|{% for x in messages | selectattr('role', 'equalto', 'tool') %}{{ loop.index }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ x.content }}{% endfor %}{{ (messages | map(attribute='role') | list)[0] }}{{ 'tool' in messages | map(attribute='role') }}
{{ messages | map(attribute='role') | length }}
{{ messages | map(attribute='role') | tojson }}
{{ messages | map('items') | first | list | length }} {{ ([1, 2] | map('string') | list) + ['x'] }} {{ none | map('x') | list }} {{ none | select | list }} {{ [1, 2, 3] | select('gt', 1) | sum }} {{ [3, 1] | map('string') | sort | join }} {{ {'a': 1}[1:] }}|{{ 5[1:] }}|
{{ ['a', 'b'] | map('upper') | list }} {{ [1, 2] | map('string') | join }} {{ ['x'] | map('replace', 'x', 'y') | list }}
{{ [1, 2] | first }} {{ [1, 2] | last }} {{ [] | first }}|{{ [] | last }}| {{ 'abc' | first }} {{ 'abc' | last }}
{{ 'abc' | list }} {{ {'a': 1} | list }} {{ (1, 2) | list }} {{ range(3) | list }} {{ range(1, 7, 2) | list }} {{ range(5, 0, -2) | list }}
{{ 'abc' | length }} {{ 'é🦖' | length }} {{ {'a': 1} | length }} {{ [] | count }}
{{ '12' | int }} {{ 'x' | int }} {{ 'x' | int(7) }} {{ '0x1f' | int(base=16) }} {{ 3.9 | int }} {{ '3.9' | int }} {{ true | int }} {{ none | int }}
{{ '1.5' | float }} {{ 'x' | float }} {{ 'x' | float(2.5) }} {{ 3 | float }}
{{ 3.14159 | round(2) }} {{ 2.5 | round }} {{ 2.4 | round(method='ceil') }} {{ -3 | abs }} {{ [1, 2, 3] | sum }} {{ [1, 5, 3] | max }} {{ [4, 2] | min }}
{{ ' x ' | trim }}|{{ 'xxaxx' | trim('x') }}|{{ '\n a \n' | trim }}|{{ none | trim }}
{{ 'a,b' | replace(',', ';') }} {{ 'aaa' | replace('a', 'b', 2) }} {{ 123 | replace(2, 'x') }}
{{ 'hello world' | title }} {{ 'hELLO' | capitalize }} {{ 'abc' | upper }} {{ 'ABC' | lower }} {{ "they're bill's" | title }}
{{ 'a\nb\n\nc' | indent }}|{{ 'a\nb' | indent(2, true) }}|{{ 'a\n\nb' | indent(2, blank=true) }}|{{ 'a\nb\n' | indent(2) }}|{{ 'a\nb' | indent(width='> ') }}
{{ [1, 2] | join }} {{ ['a', none, 1.0] | join('-') }} {{ 'abc' | join(',') }} {{ tools | join(',', attribute='type') }}
{{ 'x' | center(9) }}|{{ 'ab' | center(5) }}|
{{ '<a href="x">\'&' | e }} {{ '<' | escape }} {{ '<' | safe }}
{{ 'a' | safe + '<' + '>' }} {{ '<' + '&' | safe }} {{ ('a' | safe + '"') | length }} {{ '<' | e + '<' }} {% set x = 'b' | safe %}{{ x + "'" if true else x + x }}{{ ['<'] | map('escape') | join }}
{{ ['a' | safe + 'b', 'c' + 'd'] }}{{ 1 + 2 + 3 - 4 + 5 }} {{ [1] + [2] + [3] }} {{ (1,) + (2,) }} {{ -1 + 2 * 3 + 4 }} {{ 1.5 + 1 }} {{ 'a' + 'b' ~ 1 }} {{ {'k': 1 + 1} }}{{ 'x' if 1 + 1 == 2 and 2 + 2 == 4 }} {% if 1 + 1 > 1 %}y{% endif %}{% set z = 1 + 1 %}{{ z }}{% for i in [1] + [2] if i + 1 > 2 %}{{ i + 1 }}{% endfor %}{{ [1, 2, 3][1 + 1] }}{{ [1, 2, 3][0 + 1:] }} {{ true + 1 }} {{ 'safe' }}
{{ 'a' + 1 ~ 'safe' }}
{{ 'a b c' | wordcount }} {{ [1, 2, 3, 4, 5] | batch(2) | list }} {{ [1, 2, 3] | slice(2) | list }} {{ [1, 2, 3] | reverse | list }} {{ 'abc' | reverse }}
{{ [{'a': 1, 'b': 2}, {'a': 1, 'b': 3}] | groupby('a') | length }} {% for g, items in messages | groupby('role') %}{{ g }}{{ items | length }}{% endfor %}
{{ tools | tojson }}
{{ tools | tojson(indent=2) }}
{{ tools[0] | tojson(indent=0) }}
{{ tools[0].function.parameters | tojson(sort_keys=true) }}
{{ tools[0] | tojson(separators=(',', ':')) }} {{ [1, {'a': 2}] | tojson(separators=[' ;', ' =']) }}
{{ tools[0].function.description | tojson }} {{ 'é🦖\x7f\u2028</script>' | tojson }} {{ 'é🦖\x7f' | tojson(ensure_ascii=true) }} {{ 'é' | tojson(true) }}
{{ [1.0, 1e20, 1e-7, 0.1, -0.0, 123456789.123] | tojson }} {{ [12345678901234567890, 10 ** 25, -5] | tojson }} {{ [none, true, false] | tojson }}
{{ {'b': 1, 'a': [], 'c': {}} | tojson(indent=4, sort_keys=True) }}
{{ {1: 'x', none: 'y', 1.5: 'w'} | tojson }} {{ {true: 'z'} | tojson }}
{{ (1, 2) | tojson }} {{ [] | tojson(indent=2) }} {{ {} | tojson }} {{ [1] | tojson(indent='\t') }} {{ 'a"b\\c\b\f\n\r\t\x1f' | tojson }}
{{ missing | tojson }}
{{ messages[2].tool_calls[1].function.arguments | tojson }} {{ messages[2].tool_calls[0].function.arguments }}
{{ '%s' % 'x' }} {{ '%s=%s' % ('a', 1) }} {{ '%d%%' % 5 }} {{ '%5.2f|' % 3.14159 }} {{ '%-5s|' % 'ab' }} {{ '%05d' % 42 }} {{ '%x %X %o' % (255, 255, 8) }} {{ '%r' % 'a' }} {{ '%r %s' % ([1, 'a'], none) }}
{{ '%(a)s and %(b)d' % {'a': 'x', 'b': 2} }} {{ '%c%c' % ('a', 98) }} {{ '%e' % 12345.678 }} {{ '%g' % 0.0001 }} {{ '%+d % d' % (1, 2) }} {{ '%i' % 3.9 }} {{ '%.2s' % 'abc' }} {{ '%*d' % (5, 1) }} {{ '%s' % true }} {{ '%d' % true }} {{ '%a' % 'é' }} {{ '%%' % () }} {{ '%.3d' % 5 }}
{{ '%s' % [1, 2] }} {{ '%s' % {'a': 1} }} {{ '%s' % 'a' ~ 'b' }} {{ '%s' % 'a' | upper }} {{ ('%s' % 5) | int + 1 }} {{ ['%s' % 1, 2 % 2] }} {{ 'x' if '%s' % 1 == '1' }}
{{ '%s %s' % 'a' }}
{{ '%s' % ('a', 'b') }}
{{ '%d' % 'a' }}
{{ 10 % 4 * 2 }} {{ 2 * 7 % 4 }} {{ 10 % 4 % 2 }} {{ -10 % 4 }} {{ 1 + 7 % 4 }} {{ 2 ** 3 % 5 }} {{ (1 + 6) % 4 }} {{ loop is defined }} {{ messages | length % 2 }} {{ 7 % 2 == 1 }} {{ 7 % -4 }} {{ 7 % 2 ** 2 }}
{% for m in messages %}{% if loop.index0 % 2 == 0 %}a{% else %}b{% endif %}{% endfor %}
{{ "%s, %s!" | format('Hi', 'you') }} {{ '%(a)s' | format(a=1) }} {{ '%s' | format(none) }}
{{ '{} {}'.format(1, 'a') }} {{ '{0}{1}{0}'.format('a', 'b') }} {{ '{x:>4}|{y:<4}|{z:^4}'.format(x=1, y='a', z='b') }} {{ '{:.2f} {:,} {:03d} {:x}'.format(3.14159, 1234567, 7, 255) }} {{ '{{}}'.format() }}
{{ messages is sequence }}{{ messages is mapping }}{{ messages is iterable }}{{ messages is string }}
{{ {} is sequence }}{{ {} is mapping }}{{ {} is iterable }}{{ 'a' is sequence }}{{ 'a' is iterable }}{{ 'a' is mapping }}{{ 'a' is string }}
{{ 1 is sequence }}{{ none is iterable }}{{ none is sequence }}{{ missing is iterable }}{{ missing is sequence }}{{ missing is mapping }}{{ (1, 2) is sequence }}{{ {}.items() is sequence }}{{ {}.items() is iterable }}
{{ 1 is number }}{{ 1.5 is number }}{{ true is number }}{{ '1' is number }}{{ 1 is integer }}{{ true is integer }}{{ 1.0 is float }}{{ 1 is float }}{{ true is boolean }}{{ 1 is boolean }}{{ true is true }}{{ 1 is true }}{{ false is false }}{{ none is none }}
{{ 'abc' is lower }}{{ 'ABC' is upper }}{{ 3 is odd }}{{ 4 is even }}{{ 9 is divisibleby 3 }}{{ 1 is eq 1 }}{{ 1 is ne 2 }}{{ 1 is lt 2 }}{{ 2 is ge 2 }}{{ 1 is in [1] }}{{ 'tojson' is filter }}{{ 'odd' is test }}{{ range is callable }}{{ 1 is callable }}{{ none is sameas none }}{{ 3 is not odd }}
{{ messages[0].content is defined and messages[0].content is not none }} {{ messages[0].x is not defined }} {{ messages[0].x is undefined }}
{{ '  a b '.strip() }}|{{ 'xxaxyx'.strip('xy') }}|{{ '  a '.lstrip() }}|{{ '  a '.rstrip() }}|{{ 'abcabc'.rstrip('bc') }}|{{ 'aab'.lstrip('a') }}|{{ ' a '.strip(none) }}|{{ '\x1c a\u3000'.strip() }}|{{ 'ab'.strip('') }}
{{ 'a b  c'.split() }} {{ ' a b '.split(' ') }} {{ 'a,b,c'.split(',', 1) }} {{ 'a b c d'.split(none, 2) }} {{ 'a b c'.split(maxsplit=1) }} {{ 'abc'.split('x') }} {{ ''.split() }} {{ ''.split(',') }} {{ ' a  b '.split(none, 1) }} {{ 'a,b'.split(sep=',') }} {{ 'a,b'.split(',')[-1] }}
{{ 'a b c'.rsplit(' ', 1) }} {{ 'a,b,c'.rsplit(',') }} {{ ' a  b '.rsplit(none, 1) }} {{ 'a b c'.rsplit(maxsplit=1) }} {{ 'a b c'.split(' ')[0] }}
{{ 'abc'.split('') }}
{{ 'a\nb\r\nc\rd\x0be\u2028f'.splitlines() }} {{ 'a\nb\n'.splitlines(true) }} {{ ''.splitlines() }} {{ '\n'.splitlines() }} {{ 'a\r\n'.splitlines(keepends=True) }}
{{ 'abc'.startswith('a') }} {{ 'abc'.startswith(('x', 'a')) }} {{ 'abc'.endswith('bc') }} {{ 'abc'.endswith(('x', 'y')) }} {{ 'abc'.startswith('b', 1) }} {{ 'abc'.endswith('b', 0, 2) }} {{ 'abc'.startswith('') }} {{ 'abc'.startswith('', 9) }}
{{ 'aXbX'.replace('X', '-') }} {{ 'aaa'.replace('a', 'b', 2) }} {{ 'ab'.replace('', '-') }} {{ 'aaa'.replace('a', '', -1) }}
{{ 'hello wORLD'.title() }} {{ "they're bill's".title() }} {{ 'hELLO wORLD'.capitalize() }} {{ 'aBc'.swapcase() }} {{ 'Straße'.upper() }} {{ 'ÀÉ'.lower() }} {{ 'ß'.casefold() }} {{ ''.capitalize() }}
{{ 'hello'.find('l') }} {{ 'hello'.rfind('l') }} {{ 'hello'.find('x') }} {{ 'héllo'.index('l') }} {{ 'hello'.rindex('l') }} {{ 'hello'.count('l') }} {{ 'hello'.find('l', 3) }} {{ 'hello'.find('l', 0, 2) }} {{ 'aaaa'.count('aa') }} {{ 'abc'.count('') }} {{ 'hello'.find('') }} {{ 'hello'.find('o', -1) }} {{ 'hello'.count('l', 3) }} {{ 'abc'.find('', 9) }}
{{ 'hello'.index('x') }}
{{ '123'.isdigit() }}{{ ''.isdigit() }}{{ '1a'.isdigit() }}{{ '²'.isdigit() }}{{ '½'.isdigit() }}{{ '½'.isnumeric() }}{{ '٣'.isdecimal() }}{{ '²'.isdecimal() }}{{ 'ab'.isalpha() }}{{ 'a1'.isalnum() }}{{ 'a b'.isalpha() }}{{ ' \n'.isspace() }}{{ 'ab'.islower() }}{{ 'AB1'.isupper() }}{{ 'Ab Cd'.istitle() }}{{ 'é'.isascii() }}{{ 'a1'.isidentifier() }}{{ '1a'.isidentifier() }}{{ 'a\n'.isprintable() }}{{ '1'.islower() }}
{{ ','.join(['a', 'b']) }} {{ ''.join('abc') }} {{ ', '.join({'a': 1, 'b': 2}) }} {{ '-'.join(('x',)) }} {{ ''.join([]) }}
{{ ','.join([1]) }}
{{ 'prefix-x'.removeprefix('prefix-') }} {{ 'x.txt'.removesuffix('.txt') }} {{ 'x'.removeprefix('y') }} {{ 'x'.removesuffix('') }}
{{ '42'.zfill(5) }} {{ '-42'.zfill(5) }} {{ '+1'.zfill(4) }} {{ 'abc'.zfill(2) }} {{ 'a'.center(4) }}| {{ 'ab'.center(5, '*') }} {{ 'abc'.center(6, '-') }} {{ 'a'.ljust(3) }}| {{ 'a'.rjust(3, '.') }} {{ 'a\tb'.expandtabs() }} {{ 'a\tb'.expandtabs(4) }}
{{ 'a=b=c'.partition('=') }} {{ 'a=b=c'.rpartition('=') }} {{ 'abc'.partition('x') }} {{ 'abc'.rpartition('x') }}
{{ tools[0].get('type') }} {{ tools[0].get('x') }} {{ tools[0].get('x', 'd') }} {{ tools[0].keys() | list }} {{ {'a': 1}.values() | list }} {{ {'a': 1}.items() | list }} {{ {'a': 1}.copy() }}
{{ tools[0].function.parameters.properties.tags['items'].type }}
{% for k, v in tools[0].function.parameters.properties.tags.items() %}{{ k }} {% endfor %}
{{ [1, 2, 1].count(1) }} {{ [1, 2].index(2) }} {{ (1, 2).index(1) }} {{ [1].copy() }}
{{ [1].append(2) }}
{% set _ = {}.update({'a': 1}) %}
{{ {'a': 1}.pop('a') }}
{{ 'abc'.nothing() }}
{{ 'abc'.nothing }}|
{{ messages.nothing() }}
{% set ns = namespace(a=1, b=[]) %}{% for i in range(3) %}{% set ns.a = ns.a + i %}{% set ns.b = ns.b + [i] %}{% endfor %}{{ ns.a }}{{ ns.b }}
{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %}
{% for m in messages %}{{ loop.index }}{{ loop.first }}{{ loop.last }}{{ loop.revindex }}{{ loop.length }}{{ loop.previtem.role if loop.previtem is defined }}{{ loop.nextitem.role if not loop.last }}{{ loop.cycle('x', 'y') }};{% endfor %}
{% for x in [1, 1, 2] %}{{ loop.changed(x) }}{% endfor %}{% for x in [1, 2, 3] if x != 2 %}{{ x }}{{ loop.index }}{% endfor %}{% for x in [] %}{% else %}none{% endfor %}
{% for x in [1, [2, [3]]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}
{% for a, b in [(1, 2), [3, 4]] %}{{ a + b }}{% endfor %}{% for x in 1, 2 %}{{ x }}{% endfor %}{% for x in messages if x.role == 'tool' %}{{ x.content }}{% endfor %}{% for c in 'ab' %}{{ c }}{% endfor %}{% for k in {'p': 1} %}{{ k }}{% endfor %}
{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}{% for i in [1] %}{% set x = 3 %}{% endfor %}{{ x }}
{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set t %}<{{ a }}>{% endset %}{{ t }}{% set u | upper %}abc{% endset %}{{ u }}
{% macro f(a, b='d', c=none) %}[{{ a }}{{ b }}{{ c }}]{% endmacro %}{{ f(1) }}{{ f(1, c=2) }}{{ f() }}{% macro g(x) %}{% if x > 0 %}{{ x }}{{ g(x - 1) }}{% endif %}{% endmacro %}{{ g(3) | trim }}
{% macro w() %}<{{ caller() }}>{% endmacro %}{% call w() %}in{% endcall %}
{% macro f(a) %}{{ a | tojson }}{% endmacro %}{{ f({'x': 1}) }}
{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{% filter upper %}abc{% endfilter %}{% raw %}{{ x % y }}{% endraw %}{# comment % #}{{ '{{' }}{{ '%}' }}
{{ joiner is defined }}{% set j = joiner(',') %}{% for i in range(3) %}{{ j() }}{{ i }}{% endfor %}{{ dict(a=1, b='x') }}
{{ raise_exception('no ' ~ messages[0].role) }}
{{ 'a' 'b' }}{{ "\"" }}{{ '\'' }}{{ '\x41\u00e9\101\/\d\a' }}{{ "tab\there" }}{{ '\\n' }}{{ '\U0001F996' }}
{{ 1_000 }} {{ 0x1f }} {{ 0b101 }} {{ 0o17 }} {{ 1e3 }} {{ 1.5e-3 }}
{{ {'a': {'b': [1, {'c': 2}]}}.a.b[1].c }} {{ {'a': 1}['a'] }} {{ messages[0]['role'] }} {{ (1, 2)[0] }} {{ [[1, 2], [3]][0][1] }} {{ {'a-b': 1}['a-b'] }}
{{ messages[0].content | trim | length > 3 and messages | length >= 2 }} {{ not (1 in [2]) }} {{ 1 not in [2] and 'x' }} {{ -1 | abs }} {{ - 1 + 2 }} {{ +1 }}
{{ [1, 2, 3,] }} {{ {'a': 1,} }} {{ (1,) }} {{ () }} {{ {} }} {{ [] }}
{{ messages | length }}{{ messages|map(attribute="role")|list }}{{ messages[0] == messages[0] }}{{ {'a': 1} == {'a': 1} }}{{ [1] == [1.0] }}{{ (1, 2) == [1, 2] }}
{{ 5 | string + 'x' }}
{{ 'x' ~ 5 + 1 }}
{{ loop }}|{{ namespace(x=1).x }}
{{ range(0) | list }}
{{ 'a' | unknown }}
{{ 'a' is unknown }}
{% unknown %}
{{ 'unclosed }}
{% if true %}
{{ 'foo bar baz qux' | truncate(9) }} {{ 'foo bar' | truncate(3, true) }} {{ '<p>a</p> b' | striptags }} {{ 123456 | filesizeformat }}
{{ ['a', 'B', 'a', 'b'] | unique | list }} {{ ['a', 'B', 'a', 'b'] | unique(case_sensitive=true) | list }} {{ messages | map(attribute='content') | map('length') | list }} {{ messages | sum(attribute='content.length', start=5) if false else 0 }}
{{ [['k', 1], ['l', 2]] | map('first') | list }} {{ [1, 2, 3] | map('string') | map('default', 'x') | list }} {{ [{'a': {'b': 1}}] | map(attribute='a.b') | list }} {{ [[5, 6]] | map(attribute=1) | list }} {{ [{'n': 2}, {'n': 1}] | sort(attribute='n') | map(attribute='n') | list }}
{{ none is none and none == None }} {{ missing == none }} {{ missing is none }} {{ missing == missing }} {{ missing != 'a' }} {{ [missing] | length }}
{{ 3.0 | int }} {{ 3.7 // 1 }} {{ 1.0 * 3 }} {{ 10 / 5 | int }} {{ (10 / 5) | int }} {{ 1e3 | int }} {{ 2.0 ** 3 }} {{ 5 | float / 2 }} {{ true + 1 }}
"""

BLOCKS = [
    "{% for m in messages %}\n    {% if true %}\n  {{ m.role }}\n    {% endif %}\n{% endfor %}\nend\n",
    "  {%+ if true %}\n a\n  {%- endif -%}\n b  {{- 'c' -}}  d\n\n",
    "{# a comment #}\n  {# one more #}\nx\n{#- third -#}\ny",
    "a\r\nb\rc{{ 'd\r\ne' }}\r\n",
    "{% if true %}\r\n  x\r\n{% endif %}\r\ny\r\n",
    "{{ 'a' }}\n\n{{- 'b' }}\n",
    "{%- set x -%}\n  a\n{%- endset -%}\n{{ x }}\n",
    "{%- for m in messages -%}\n{%- if m.role == 'tool' -%}\n{{- m.content -}}\n{%- endif %}\n{% endfor %}",
    "{% raw -%}\n {{ a }} {% generation %} {%- endraw %}x",
    "{{\n  {'a':\n   1}\n | tojson\n}}\n{%\n set x = '%s' %\n 'y'\n%}{{ x }}",
    "{% set x = [\n  1,\n  2\n] %}{{ x }}{{ '}}' }}{{ {'a': {'b': {}}} }}",
    "{{ 'a' }}}{ {{ '{%' }} {{ \"it's\" }} % 5 {{ 5 %2 }}{{ 5% 2 }}{{5%2}}",
    "{%- macro m(x) %}\n  <{{ x }}>\n{%- endmacro %}\n{{ m(1) }}\n{{- m(2) }}",
]

SNIPPETS = [line for line in SNIPPETS.split("\n") if line] + BLOCKS
